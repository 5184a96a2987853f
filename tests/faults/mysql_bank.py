"""The bank of verify.py in MariaDB or MySQL: the same transfers, ledger and checks, by pymysql; and the one that a soak
keeps busy, with vaults beside the accounts."""

import pymysql
import verify
from workload import noise


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


class MysqlVaultBank(MysqlBank):
    """With the table `vault` beside `account`; transfers go across both, and the sum of both stays. Columns may be added
    meanwhile."""

    def create(self):
        super().create()
        self.server.execute(
            self.database,
            "create table vault (id int primary key, cents bigint not null, owner varchar(40))",
            f"insert into vault select seq, {verify.CENTS}, concat('vault ', seq) "
            f"from {self.server.numbers(verify.ACCOUNTS)}",
        )

    def transaction(self, connection, rng, number, seq):
        for _ in range(rng.randint(1, 3)):
            self._transfer(connection, rng)
        drawn, letter = rng.random(), number * 10**7 + seq
        if drawn < 0.4:
            body = noise(rng, *self.letter_bytes)
            connection.execute("insert into letter (id, body) values (%s, %s)", (letter, body))
        elif drawn < 0.5:
            connection.execute("update letter set body = concat(body, '.') where id = %s", (-rng.randint(1, 200),))
        elif drawn < 0.55:
            # Another key, of which nobody else thinks.
            connection.execute("update letter set id = id + 5000000 where id = %s", (letter - rng.randint(1, 50),))
        elif drawn < 0.6:
            connection.execute("delete from letter where id = %s", (letter - rng.randint(50, 500),))
        elif drawn < 0.8:
            connection.execute("insert into visit (writer, seq) values (%s, %s)", (number, seq))
        return "transfers"

    def _transfer(self, connection, rng):
        """From an account to a vault; at times it is taken back."""
        account, vault = rng.randint(1, verify.ACCOUNTS), rng.randint(1, verify.ACCOUNTS)
        cents = rng.randint(-900, 900)
        connection.execute("savepoint one")
        connection.execute(
            "update account set cents = cents - %s, version = version + 1 where id = %s", (cents, account)
        )
        connection.execute("update vault set cents = cents + %s where id = %s", (cents, vault))
        connection.execute("rollback to savepoint one" if rng.random() < 0.1 else "release savepoint one")
