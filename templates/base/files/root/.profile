# Read by root's login shells. Starts no process.
if [ "${BASH-}" ] && [ -f ~/.bashrc ]; then
  . ~/.bashrc
fi
