"""Which Debian mirror a template build uses."""

from firebrick.builder.apt_sources import KEYRING, carried_options, os_release, suite_sources

DEB822 = """\
# a comment
Types: deb
URIs: http://mirror.test/debian
Suites: trixie trixie-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.test/debian-security
Suites: trixie-security
Components:
 main
 contrib

Types: deb
URIs: https://vendor.test/node
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: trixie
Components: main
"""


def test_the_machines_mirror_is_asked_for_our_suite() -> None:
    """Every pocket of the machine's own release is translated; vendors and disabled entries are left out."""
    lines = suite_sources([("debian.sources", DEB822)], host_suite="trixie", suite="bookworm")
    assert lines == (
        f"deb [signed-by={KEYRING}] http://mirror.test/debian bookworm main",
        f"deb [signed-by={KEYRING}] http://mirror.test/debian bookworm-updates main",
        f"deb [signed-by={KEYRING}] http://mirror.test/debian-security bookworm-security main",
    )


def test_one_line_format_with_options() -> None:
    """The old format is read, with options in brackets and comments."""
    text = (
        "# deb http://no.test/debian bookworm main\ndeb [arch=amd64 signed-by=/x.gpg] http://m.test/d/ bookworm main\n"
    )
    lines = suite_sources([("sources.list", text)], host_suite="bookworm", suite="bookworm")
    assert lines == (f"deb [signed-by={KEYRING}] http://m.test/d/ bookworm main",)


def test_vendors_with_debians_suite_names_are_no_mirror() -> None:
    """A repository that calls its suite like Debian's but has no `main` cannot be bootstrapped from."""
    text = "deb https://vendor.test/linux/debian bookworm stable\n"
    assert suite_sources([("vendor.list", text)], host_suite="bookworm", suite="bookworm") == ()


def test_updates_alone_are_no_mirror() -> None:
    """Without the main suite the default mirror is better than half a mirror."""
    text = "deb http://m.test/debian-security bookworm-security main\n"
    assert suite_sources([("sources.list", text)], host_suite="bookworm", suite="bookworm") == ()


def test_only_transport_settings_are_carried() -> None:
    """Proxies and date checks come along; everything else of the machine's apt does not."""
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://p.test:3128";\n'
        'Acquire::Languages "none";\nAcquire::Check-Valid-Until "false";\n'
    )
    assert carried_options(dump) == ('Acquire::http::Proxy "http://p.test:3128"', 'Acquire::Check-Valid-Until "false"')


def test_os_release_is_unquoted() -> None:
    """Values may be quoted."""
    assert os_release('ID=debian\nNAME="Debian GNU/Linux"\n# x=y\n') == {"ID": "debian", "NAME": "Debian GNU/Linux"}
