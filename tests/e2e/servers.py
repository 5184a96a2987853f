"""Private servers for the tests, the demo and the benches: PostgreSQL, MariaDB, MySQL, two kinds of S3, and a TCP proxy that
misbehaves.

Every server listens on a free port of 127.0.0.1, keeps its data in a folder of its own outside the checkout (mode
0711, owned by the unprivileged user that runs it), and is stopped by its process id. Nothing here ever touches a
server that it did not start: `Postgres.start` asserts `data_directory` before anybody may write.
"""

import glob
import http.server
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import psycopg
import pymysql
from proxy import Proxy  # noqa: F401: for whoever has a server behind it

TOOLS = os.environ.get("MILLRACE_TEST_TOOLS", f"/var/tmp/millrace-test-tools-{os.getuid()}")


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds, what, every=0.05):
    """Polls until `condition()` is truthy and gives its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(every)


def stop_process(process, first=signal.SIGTERM, patience=20):
    """Ends a child that we started: politely, then not."""
    if process.poll() is not None:
        return
    process.send_signal(first)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def temporary_folder(prefix):
    """A folder that another user may enter, wherever the checkout is: TMPDIR if everybody may, else /tmp."""
    base = os.environ.get("TMPDIR", "/tmp")
    part = base
    while part != "/":
        if not os.stat(part).st_mode & 0o001:
            base = "/tmp"
            break
        part = os.path.dirname(part)
    folder = tempfile.mkdtemp(prefix=prefix, dir=base)
    os.chmod(folder, 0o711)
    return folder


def postgres_programs(major):
    """The folder that holds initdb and postgres of this major version, or None."""
    for folder in (f"/usr/lib/postgresql/{major}/bin", f"{TOOLS}/postgresql-{major}/bin"):
        if os.path.exists(f"{folder}/initdb"):
            return folder
    return None


def client_program(name):
    """psql, pg_recvlogical, …: the newest that Debian's packages brought (the npm servers bring none)."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda p: int(p.split("/")[4]))
    return found[-1] if found else shutil.which(name)


HBA = """\
local all all trust
host all postgres 127.0.0.1/32 trust
host all shop 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
host replication postgres 127.0.0.1/32 trust
host replication all 127.0.0.1/32 scram-sha-256
"""


class Postgres:
    """One private PostgreSQL server. Roles: `postgres` (superuser), `shop` (owns the tables), `cdc` (what the daemon
    logs in as: REPLICATION, may create publications of `shop`'s tables; password in `Postgres.PASSWORD`)."""

    PASSWORD = "wheel and race"
    ADMIN, TYPE = "postgres", "postgres"

    def __init__(self, major=None, settings=None):
        self.major = int(major or os.environ.get("MILLRACE_TEST_PG", "15"))
        self.programs = postgres_programs(self.major)
        if not self.programs:
            raise FileNotFoundError(f"no PostgreSQL {self.major}: run `tests/setup.sh {self.major}`")
        self.settings = {
            "wal_level": "logical",
            "max_replication_slots": 20,
            "max_wal_senders": 20,
            "max_connections": 100,
            "max_prepared_transactions": 10,
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "128MB",
            "max_wal_size": "4GB",
            "listen_addresses": "127.0.0.1",
            "log_min_messages": "warning",
            "timezone": "Europe/Paris",
            "datestyle": "'SQL, DMY'",
            "intervalstyle": "iso_8601",
            "bytea_output": "escape",
            "extra_float_digits": 0,
            "max_slot_wal_keep_size": "8GB",
            **(settings or {}),
            **dict(part.split("=", 1) for part in os.environ.get("MILLRACE_TEST_PG_SETTINGS", "").split() if part),
        }
        self.process = None

    def _user(self):
        """Keyword arguments that make a child run as somebody whom PostgreSQL accepts."""
        if os.getuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def __enter__(self):
        self.folder = temporary_folder(f"millrace-pg{self.major}-")
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self.data = f"{self.folder}/data"
        self.environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": self.folder}
        made = subprocess.run(
            [
                f"{self.programs}/initdb",
                "-D",
                self.data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            **self._user(),
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb: {made.stdout}{made.stderr}")
        with open(f"{self.data}/pg_hba.conf", "w") as hba:
            hba.write(HBA)
        try:
            self.start()
            self._roles()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        """Starts the server (again) on its port and asserts that it is ours."""
        self.port = getattr(self, "port", None) or free_port()
        options = [part for key, value in self.settings.items() for part in ("-c", f"{key}={value}".replace("'", ""))]
        self.log = open(f"{self.folder}/log", "ab")
        self.process = subprocess.Popen(
            [f"{self.programs}/postgres", "-D", self.data, "-p", str(self.port), "-k", self.folder, *options],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            **self._user(),
        )
        wait_for(self._answers, 60, f"PostgreSQL {self.major}, log in {self.folder}/log")

    def _answers(self):
        if self.process.poll() is not None:
            with open(f"{self.folder}/log", errors="replace") as log:
                raise RuntimeError(f"PostgreSQL {self.major} ended: {log.read()[-2000:]}")
        try:
            with self.connect("postgres", "postgres") as connection:
                found = connection.execute("show data_directory").fetchone()[0]
        except psycopg.OperationalError:
            return False
        assert os.path.realpath(found) == os.path.realpath(self.data), f"port {self.port} is somebody else's: {found}"
        return True

    def _roles(self):
        with self.connect("postgres", "postgres", autocommit=True) as connection:
            connection.execute("create role shop login")
            connection.execute(f"create role cdc login replication password '{self.PASSWORD}'")
            connection.execute("grant shop to cdc")

    def connect(self, database, user="shop", **options):
        """A client connection."""
        options = {"connect_timeout": 10, "client_encoding": "UTF8", **options}
        return psycopg.connect(host="127.0.0.1", port=self.port, dbname=database, user=user, **options)

    def create_database(self, name):
        """An empty database owned by `shop`, in which `cdc` may create publications."""
        with self.connect("postgres", "postgres", autocommit=True) as connection:
            connection.execute(f'create database "{name}" owner shop')
            connection.execute(f'grant create on database "{name}" to cdc')
        return name

    def execute(self, database, *statements, user="shop"):
        """Runs statements one by one, each in a transaction of its own; gives the rows of the last."""
        with self.connect(database, user, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def drop_database(self, name):
        """Drops a database and all slots."""
        self.drop_slots()
        self.execute("postgres", f'drop database "{name}" with (force)', user="postgres")

    def drop_slots(self):
        """Drops every slot that a test left, ending who still reads from it."""
        with self.connect("postgres", "postgres", autocommit=True) as connection:
            for name, pid in connection.execute("select slot_name, active_pid from pg_replication_slots").fetchall():
                if pid:
                    connection.execute("select pg_terminate_backend(%s, 5000)", (pid,))
                connection.execute("select pg_drop_replication_slot(%s)", (name,))

    def url(self, database, user="cdc"):
        """The address for a config file."""
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}"

    def stop(self, how=signal.SIGINT):
        """Stops the server: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        stop_process(self.process, how)
        self.log.close()

    def __exit__(self, *_):
        if self.process:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


class MariaDB:
    """One private MariaDB server. Users: `root` (may do everything), `shop` (owns the tables), `cdc` (what the daemon logs
    in as, with the rights that `millrace grants` prints; password in `MariaDB.PASSWORD`)."""

    PASSWORD = "wheel and race"
    NAME, ADMIN, TYPE = "MariaDB", "root", "mariadb"
    RIGHTS = "select, replication slave, replication client"
    RESET, STATUS = "reset master", "show master status"
    # Defaults that are not those of the connector's sessions.
    SETTINGS = {
        "server-id": 1,
        "log-bin": "binlog",
        "binlog-row-image": "FULL",
        "binlog-row-metadata": "FULL",
        "character-set-server": "latin1",
        "default-time-zone": "+05:30",
        "sql-mode": "STRICT_TRANS_TABLES,NO_ZERO_DATE,ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH",
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-buffer-pool-size": "64M",
    }
    OWN_SETTINGS = {"binlog-format": "ROW", "innodb-log-file-size": "64M"}

    def __init__(self, settings=None):
        self.settings = {**self.SETTINGS, **self.OWN_SETTINGS, **(settings or {})}
        self.process = None

    def _command(self):
        """The program, to run without the machine's own settings."""
        program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        if not os.path.exists(program):
            raise FileNotFoundError("no MariaDB: run `tests/setup.sh mariadb`")
        return [program, "--no-defaults"]

    def _initialize(self):
        """What makes the data folder."""
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        return ["mariadb-install-db", "--no-defaults", f"--datadir={self.data}", *options]

    @classmethod
    def missing(cls):
        """Why there is none on this machine; None if there is one, and where it is an error that there is none."""

    @staticmethod
    def numbers(count):
        """A table of the numbers from 1 on, for FROM: its column is `seq`."""
        return f"seq_1_to_{count}"

    _user = Postgres._user

    def __enter__(self):
        self.folder = temporary_folder(f"millrace-{self.NAME.lower()}-")
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self.data, self.socket = f"{self.folder}/data", f"{self.folder}/s"
        # A server that starts removes what others have in a shared folder for temporary tables.
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        self.environment = {"PATH": path, "LC_ALL": "C", "HOME": self.folder, "TMPDIR": self.folder}
        made = subprocess.run(
            self._initialize(),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            **self._user(),
        )
        if made.returncode != 0:
            raise RuntimeError(f"{self.NAME}: {made.stdout}{made.stderr}")
        try:
            self.start()
            self.execute(
                "mysql",
                f"create user cdc@'%' identified by '{self.PASSWORD}'",
                f"grant {self.RIGHTS} on *.* to cdc@'%'",
                "create user shop@'%'",
                "grant all on *.* to shop@'%'",
                user="root",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        """Starts the server (again) on its port and asserts that it is ours."""
        self.port = getattr(self, "port", None) or free_port()
        self.log = open(f"{self.folder}/log", "ab")
        self.process = subprocess.Popen(
            [
                *self._command(),
                f"--datadir={self.data}",
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                f"--socket={self.socket}",
                f"--pid-file={self.folder}/pid",
                f"--tmpdir={self.folder}",
                *(f"--{name}={value}" for name, value in self.settings.items()),
            ],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            **self._user(),
        )
        wait_for(self._answers, 60, f"{self.NAME}, log in {self.folder}/log")

    def _answers(self):
        if self.process.poll() is not None:
            with open(f"{self.folder}/log", errors="replace") as log:
                raise RuntimeError(f"{self.NAME} ended: {log.read()[-2000:]}")
        try:
            found = self.execute("mysql", "select @@datadir", user="root")[0][0]
        except pymysql.err.OperationalError:
            return False
        assert os.path.realpath(found) == os.path.realpath(self.data), f"port {self.port} is somebody else's: {found}"
        return True

    def connect(self, database, user="shop", **options):
        """A client connection."""
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            database=database,
            user=user,
            password=self.PASSWORD if user == "cdc" else "",
            connect_timeout=10,
            **{"autocommit": True, "charset": "utf8mb4", **options},
        )

    def create_database(self, name):
        """An empty database."""
        self.execute("mysql", f"create database `{name}`", user="root")
        return name

    def execute(self, database, *statements, user="shop"):
        """Runs statements one by one, each in a transaction of its own; gives the rows of the last."""
        with self.connect(database, user) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def drop_database(self, name):
        """Drops a database."""
        self.execute("mysql", f"drop database if exists `{name}`", user="root")

    def drop_slots(self):
        """A server keeps nothing for a reader."""

    def url(self, database, user="cdc"):
        """The address for a config file."""
        return f"mysql://{user}@127.0.0.1:{self.port}/{database}"

    def stop(self, how=signal.SIGTERM):
        """Stops the server."""
        stop_process(self.process, how)
        self.log.close()

    def __exit__(self, *_):
        if self.process:
            self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


class MySQL(MariaDB):
    """One private MySQL 9, from what `tests/mysql_server.sh` brought; the same users."""

    NAME, TYPE = "MySQL", "mysql"
    RIGHTS = "select, replication slave, replication client, reload"
    RESET, STATUS = "reset binary logs and gtids", "show binary log status"
    OWN_SETTINGS = {
        "gtid-mode": "ON",
        "enforce-gtid-consistency": "ON",
        "innodb-redo-log-capacity": "32M",
        "innodb-flush-method": "nosync",
        "mysqlx": "OFF",
        "performance-schema": "OFF",
        "secure-file-priv": "NULL",
        "cte-max-recursion-depth": 4294967295,
    }

    def _command(self):
        home = f"{TOOLS}/mysql-9"
        if not os.path.exists(f"{home}/program"):
            raise FileNotFoundError("no MySQL: run `make mysql-server`")
        with open(f"{home}/program") as file:
            loader, libraries = (f"{home}/{line}" for line in file.read().splitlines())
        base = f"{home}/root/usr"
        return [loader, "--library-path", libraries, f"{base}/sbin/mysqld", "--no-defaults", f"--basedir={base}"]

    @classmethod
    def missing(cls):
        if os.path.exists(f"{TOOLS}/mysql-9/program"):
            return None
        return "no MySQL 9 on this machine: `make mysql-server` takes it from Debian's sid, and could not"

    def _initialize(self):
        names = ("innodb-flush-method", "innodb-redo-log-capacity", "lower-case-table-names")
        flush = [f"--{name}={self.settings[name]}" for name in names if name in self.settings]
        return [*self._command(), "--initialize-insecure", f"--datadir={self.data}", *flush]

    @staticmethod
    def numbers(count):
        return f"(with recursive n(seq) as (select 1 union all select seq + 1 from n where seq < {count}) select * from n) n"


class MotoS3:
    """An S3 that enforces `If-None-Match`: moto's server in a process of its own."""

    KEY, SECRET = "testing-key", "testing-secret"

    def __init__(self, bucket="lake"):
        self.bucket = bucket

    def __enter__(self):
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="millrace-moto-")
        self.log = open(f"{self.folder}/log", "wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        self.endpoint = f"http://127.0.0.1:{self.port}"
        wait_for(lambda: port_answers(self.port), 60, "moto")
        self.client().create_bucket(Bucket=self.bucket)
        return self

    def client(self):
        """boto3's client for it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.KEY,
            aws_secret_access_key=self.SECRET,
        )

    def __exit__(self, *_):
        stop_process(self.process)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def port_answers(port):
    """Whether somebody listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class CarelessS3:
    """An S3 that takes every PUT and ignores `If-None-Match`, as some do: for `check` to find out."""

    def __enter__(self):
        objects = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def key(self):
                return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

            def do_PUT(self):
                objects[self.key()] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(200, ETag='"0"')

            def do_GET(self):
                if "list-type" in self.path:
                    return self.answer(
                        200,
                        b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
                        b"</ListBucketResult>",
                        Content_Type="application/xml",
                    )
                if self.key() not in objects:
                    return self.answer(404, b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>')
                self.answer(200, objects[self.key()], ETag='"0"', Last_Modified="Mon, 23 Nov 2026 00:00:00 GMT")

            do_HEAD = do_GET

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                keys = re.findall("<Key>(.*?)</Key>", body)
                deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
                answer = f'<?xml version="1.0"?><DeleteResult>{deleted}</DeleteResult>'
                self.answer(200, answer.encode(), Content_Type="application/xml")

            def do_DELETE(self):
                objects.pop(self.key(), None)
                self.answer(204)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
