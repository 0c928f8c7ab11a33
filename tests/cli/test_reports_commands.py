"""`ximler reports` as an operator types it."""

import json


def test_reports_are_printed_as_tables_csv_and_json_and_check_their_options(ximler, own):
    env, _ = own
    assert ximler("reports", "mrr", env=env).stdout == "There is no recurring revenue in this range.\n"
    printed = ximler("reports", "mrr", "--csv", "--currency", "eur", "--from", "2026-01", "--to", "2026-03", env=env)
    header, *rows = printed.stdout.splitlines()
    assert header.startswith("currency,start,end,startMinor,newMinor")
    assert [row.split(",")[:3] for row in rows] == [
        ["EUR", "2026-01-01", "2026-02-01"],
        ["EUR", "2026-02-01", "2026-03-01"],
    ]
    shown = ximler("reports", "churn", "--json", "--currency", "eur", "--from", "2026-01", "--to", "2026-02", env=env)
    (line,) = json.loads(shown.stdout)["items"]
    assert (line["customers"], line["logoChurn"]) == (0, None)
    plotted = ximler("reports", "mrr", "--plot", "--currency", "eur", "--from", "2026-01", env=env).stdout
    assert "MRR at the end of each period" in plotted
    assert "\x1b" not in plotted
    assert (
        "Logo churn" in ximler("reports", "churn", "--plot", "--currency", "eur", "--from", "2026-01", env=env).stdout
    )
    for rows, header in (("movements", "userId,currency,day,kind"), ("payments", "id,userId,paidAt")):
        assert ximler("reports", rows, "--csv", env=env).stdout.startswith(header)
    assert ximler("reports", "cash", env=env).stdout == "There is no payment in this range.\n"
    assert ximler("reports", "cash", "--plot", env=env).stdout == "There is no payment in this range.\n"
    assert ximler("reports", "coupons", "--plot", env=env).stdout == "No coupon was used in this range.\n"
    stored = ximler("reports", "storage", "--plot", env=env).stdout
    assert stored == "Nothing is stored.\n" or "Stored MB by plan" in stored
    signups = ximler("reports", "signups", "--csv", "--from", "2026-01", "--to", "2026-02", env=env).stdout.splitlines()
    assert signups == ["start,end,registered,verified,paid,conversion,daysToPay", "2026-01-01,2026-02-01,0,0,0,,"]
    agrees = "The ledger agrees with every subscription.\nThe rollups agree with the ledger.\n"
    assert ximler("reports", "verify", env=env).stdout == agrees
    for options, named in (
        (["--from", "2026-13"], "'2026-13' is not a day"),
        (["--from", "2026-01-01", "--to", "2026-01-01"], "to: "),
        (["--from", "2999-01"], "--from: 2999-01-01 is in the future"),
        (["--plot", "--json"], "--plot and --json exclude each other"),
    ):
        refused = ximler("reports", "mrr", *options, env=env)
        assert (refused.returncode, named in refused.stderr) == (2, True), refused.stderr
