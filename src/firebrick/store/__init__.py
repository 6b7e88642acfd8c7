"""The only SQL. One file per resource; every function takes a connection from `Database.read` or `.write`, so a
service decides what stands together in one transaction. The same code runs on SQLite and PostgreSQL.
"""
