"""`ximler secrets`, typed as an operator would on the day the key is rotated."""

import json

from bson import ObjectId

from ximler.accounts.keyring import Keyring
from ximler.accounts.second_factor import PURPOSE
from ximler.core.settings import Settings

OLD, NEW, OTHER = "o" * 32, "n" * 32, "x" * 32


def test_a_secret_key_is_rotated_and_a_lost_one_is_reported(ximler, own):
    env, database = own
    user_id = ObjectId()
    keyring = Keyring(Settings(secret_key=OLD))
    database.credentials.insert_one({"_id": user_id, "totpSecret": keyring.encrypt(PURPOSE, user_id, b"A" * 32)})
    keyring.close()
    lost = ximler("secrets", "renew", "--json", env=env | {"XIMLER_SECRET_KEY": OTHER})
    assert (lost.returncode, json.loads(lost.stdout)) == (1, {"renewed": 0, "lost": 1})
    done = ximler("secrets", "renew", env=env | {"XIMLER_SECRET_KEY": f"{NEW},{OLD}"})
    assert (done.returncode, done.stdout) == (0, "1 secret encrypted under the newest key.\n")
    again = ximler("secrets", "renew", "--json", env=env | {"XIMLER_SECRET_KEY": NEW})
    assert (again.returncode, json.loads(again.stdout)) == (0, {"renewed": 0, "lost": 0})
