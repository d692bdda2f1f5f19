#!/usr/bin/env python3
"""Set up a directory from which Mosquitto serves an exchange: configuration, access list, passwords.

    deploy/mosquitto/setup.py DIR alfa bravo charlie        # then:  mosquitto -c DIR/mosquitto.conf
    deploy/mosquitto/setup.py DIR --operator olga omar --copy risk

``--operator`` names the exchange's own people, ``--copy`` logins that read copies of members' reports; the exchange's
``dojima.toml`` has to name them too.

Passwords are made here, at deploy time; none is in the repository. ``DIR/passwd`` holds their hashes for Mosquitto,
``DIR/secrets/NAME`` the password of each login, to be handed to its owner and then removed. Run it again to add
members: logins that are there keep their passwords. Mosquitto re-reads passwords and access list on SIGHUP.

Needs only Python and ``mosquitto_passwd``.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXCHANGE = "exchange"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("member", nargs="*", help="logins of member firms: a-z, 0-9 and -, at most 16 characters")
    parser.add_argument("--operator", nargs="+", default=[], help="logins of the exchange's operators")
    parser.add_argument("--copy", nargs="+", default=[], help="logins that read copies of members' reports")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--user", default=getpass.getuser(), help="system user that Mosquitto runs as when root starts it"
    )
    given = parser.parse_args()
    for name in (*given.member, *given.operator, *given.copy):
        if not re.fullmatch(r"[a-z0-9-]{1,16}", name) or name == EXCHANGE:
            parser.error(f"Expected a name of a-z, 0-9 and -, at most 16 characters, not `exchange`, got {name!r}")
    hasher = shutil.which("mosquitto_passwd")
    if hasher is None:
        sys.exit("mosquitto_passwd is not installed; it comes with Mosquitto")

    directory = given.directory.resolve()
    os.umask(0o077)
    (directory / "data").mkdir(parents=True, exist_ok=True)
    (directory / "secrets").mkdir(exist_ok=True)
    text = (HERE / "mosquitto.conf").read_text(encoding="utf-8")
    for word, value in (("DIR", directory), ("PORT", given.port), ("BIND", given.bind), ("USER", given.user)):
        text = text.replace(f"@{word}@", str(value))
    (directory / "mosquitto.conf").write_text(text, encoding="utf-8")
    operators, readers = roles(directory, given.member, given.operator, given.copy)
    access = (HERE / "acl").read_text(encoding="utf-8")
    for name in operators:
        access += f"\nuser {name}\ntopic write dojima/v1/op/{name}/in\ntopic read dojima/v1/op/{name}/out\n"
    for name in readers:
        access += f"\nuser {name}\ntopic write dojima/v1/copy/{name}/+/in\ntopic read dojima/v1/copy/{name}/+/out\n"
    (directory / "acl").write_text(access, encoding="utf-8")

    passwd = directory / "passwd"
    lines = passwd.read_text(encoding="utf-8").splitlines() if passwd.exists() else []
    there = {line.partition(":")[0] for line in lines}
    names = dict.fromkeys([EXCHANGE, *given.member, *given.operator, *given.copy])
    new = {name: secrets.token_urlsafe(18) for name in names if name not in there}
    if new:
        # Hashed in a file of its own and by -U: on a command line everybody could read the passwords.
        fresh = directory / "passwd.new"
        fresh.write_text("".join(f"{name}:{password}\n" for name, password in new.items()), encoding="utf-8")
        subprocess.run([hasher, "-U", str(fresh)], check=True)
        lines += fresh.read_text(encoding="utf-8").splitlines()
        fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, password in new.items():
            (directory / "secrets" / name).write_text(password + "\n", encoding="utf-8")
        fresh.replace(passwd)
    if os.geteuid() == 0 and given.user != "root":
        for path in (directory, *directory.rglob("*")):
            if "secrets" not in path.relative_to(directory).parts:
                shutil.chown(path, given.user)
    print(f"{directory}: {len(new)} new logins ({', '.join(new) or 'none'}); mosquitto -c {directory}/mosquitto.conf")


def roles(directory: Path, members: list[str], operators: list[str], readers: list[str]) -> tuple[list[str], list[str]]:
    """Operators and readers of copies: those of this call, and of calls before as the access list there has them."""
    acl = directory / "acl"
    before = acl.read_text(encoding="utf-8") if acl.exists() else ""
    operators = [*re.findall(r"(?m)^topic write dojima/v1/op/([a-z0-9-]+)/in$", before), *operators]
    readers = [*re.findall(r"(?m)^topic write dojima/v1/copy/([a-z0-9-]+)/\+/in$", before), *readers]
    for name in {*operators} & {*readers} | {*operators, *readers} & {*members}:
        sys.exit(f"Expected each login to be a member, an operator or a reader of copies, got {name} twice")
    return list(dict.fromkeys(operators)), list(dict.fromkeys(readers))


if __name__ == "__main__":
    main()
