"""The bank of verify.py in MariaDB or MySQL: the same transfers, ledger and checks, by pymysql."""

import pymysql
import verify


class Session:
    """A connection with the few methods that the writers use. The connection has nothing open but what they began."""

    def __init__(self, connection):
        self.connection, self.commit, self.rollback = connection, connection.commit, connection.rollback

    def execute(self, statement, arguments=None):
        with self.connection.cursor() as cursor:
            cursor.execute(statement, arguments)

    def close(self):
        try:
            self.connection.close()
        except pymysql.err.Error:
            pass


class MysqlBank(verify.Bank):
    """Its schema is the database `bank`."""

    AGAIN = (pymysql.err.IntegrityError,)
    # 1205 and 1213, a lock that was waited for in vain, are among them.
    GONE = (pymysql.err.OperationalError, pymysql.err.InterfaceError, pymysql.err.InternalError)

    def create(self):
        self.server.create_database(self.database)
        self.server.execute(
            self.database,
            "create table account (id int primary key, cents bigint not null, version bigint not null default 0)",
            "create table ledger (writer int, seq bigint, primary key (writer, seq))",
            "create table letter (id bigint primary key, body text not null)",
            "create table visit (writer int, seq bigint, at timestamp(6) default current_timestamp(6))",
            "insert into account (id, cents) "
            f"select seq, {verify.CENTS} from {self.server.numbers(verify.ACCOUNTS)}",
            f"insert into letter select -seq, sha2(seq, 256) from {self.server.numbers(200)}",
        )

    def connect(self):
        return Session(self.server.connect(self.database, autocommit=False))

    def add_letters(self, rows, bytes_each=1000):
        for first in range(0, rows, 2000):
            count = min(2000, rows - first)
            self.server.execute(
                self.database,
                f"insert into letter select 1000000000 + {first} + seq, "
                f"repeat(sha2(seq + {first}, 256), {bytes_each // 64}) from {self.server.numbers(count)}",
            )
