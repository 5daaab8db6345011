"""One row per account and API says how many calls may be made now; two functions change it, under its lock.

`level` is a token bucket: it fills at `rate` permits a second and holds BURST_SECONDS' worth of them, at
least one. So in any second at most `rate` permits plus a full bucket are granted. All times are the
database's own, because the clocks of processes differ. A crash of the server may lose the row (the table is
UNLOGGED, so that taking permits never waits for the disk); then the account starts again at the configured
rate.

Live callers go first. Other callers must leave them half of the bucket. While live callers go short, the
others get SHARE of the rate and no more, on credit if need be, so that they never starve.

A refusal by Kommo pauses the account. After the pause one call passes as a probe; the others follow once it
has succeeded, or another probe follows after PROBE_SECONDS.
"""

# Chosen: a short burst goes out at once, and Kommo's count for any second is exceeded by a tenth at most.
BURST_SECONDS = 0.1
# Chosen: how long other callers hold back after live callers went short.
SHORT_SECONDS = 0.5
# Chosen: an import that sends only a tenth still ends, and live callers hardly notice it.
SHARE = 0.1
# Chosen: how long a rate takes to grow from zero to the configured one.
GROW_SECONDS = 60.0
# Chosen: refusals of calls that were already on their way count as one reason to slow down.
CUT_SECONDS = 1.0
# Chosen: a probe whose process died, or that Kommo does not answer, holds the others for this long.
PROBE_SECONDS = 10.0
# Chosen: the longest pause that a Retry-After can order.
PAUSE_SECONDS_MAX = 3600.0
# Chosen: the longest pause when Kommo does not say how long to wait.
REFUSED_SECONDS_MAX = 60.0
# Chosen: so many pauses of one second, because a single refusal is often followed by success; then they
# double.
REFUSALS_AT_ONCE = 2

TABLE = """
CREATE UNLOGGED TABLE IF NOT EXISTS ledger.budgets (
  account text NOT NULL, api text NOT NULL, PRIMARY KEY (account, api),
  rate double precision NOT NULL, level double precision NOT NULL,
  at timestamptz NOT NULL, short_until timestamptz NOT NULL DEFAULT '-infinity',
  spare_at timestamptz NOT NULL DEFAULT '-infinity', cut_at timestamptz NOT NULL DEFAULT '-infinity',
  paused_until timestamptz NOT NULL DEFAULT '-infinity', probe_until timestamptz NOT NULL DEFAULT '-infinity',
  grown_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  closed boolean NOT NULL DEFAULT false, refusals integer NOT NULL DEFAULT 0)
  WITH (fillfactor = 50);
"""

# Returns the account's row, locked, with its bucket filled up to this moment at no more than the configured
# rate.
CURRENT = """
CREATE OR REPLACE FUNCTION ledger.budget(of_account text, of_api text, configured double precision)
  RETURNS ledger.budgets LANGUAGE plpgsql AS $$
DECLARE b ledger.budgets; passed double precision; moment timestamptz;
BEGIN
  SELECT * INTO b FROM ledger.budgets WHERE account = of_account AND api = of_api FOR UPDATE;
  IF NOT FOUND THEN
    INSERT INTO ledger.budgets (account, api, rate, level, at)
      VALUES (of_account, of_api, configured, greatest(1, configured * {burst}), clock_timestamp())
      ON CONFLICT DO NOTHING;
    SELECT * INTO b FROM ledger.budgets WHERE account = of_account AND api = of_api FOR UPDATE;
  END IF;
  moment := clock_timestamp();
  passed := greatest(0, extract(epoch FROM moment - b.at));
  b.rate := least(b.rate, configured);
  b.level := least(greatest(1, b.rate * {burst}), b.level + b.rate * passed);
  b.at := moment;
  RETURN b;
END $$
"""

# Grants permits to `live` and `other` callers that are waiting, and `ahead` ones for live callers to come.
# `unused` permits of an earlier call are returned; `taken`: Kommo has accepted a call since, so the rate may
# grow.
TAKE = """
CREATE OR REPLACE FUNCTION ledger.take_permits(
  of_account text, of_api text, configured double precision, live integer, ahead integer,
  other integer, unused integer, taken boolean,
  OUT live_given integer, OUT other_given integer, OUT wait_seconds double precision, OUT probe boolean)
  LANGUAGE plpgsql AS $$
DECLARE b ledger.budgets; burst double precision; kept double precision; missing integer;
BEGIN
  b := ledger.budget(of_account, of_api, configured);
  live_given := 0; other_given := 0; wait_seconds := 0; probe := false;
  IF b.paused_until > b.at OR b.probe_until > b.at THEN
    wait_seconds := extract(epoch FROM greatest(b.paused_until, b.probe_until) - b.at);
  ELSIF b.closed THEN
    IF live + other > 0 THEN
      probe := true;
      live_given := least(live, 1);
      other_given := 1 - live_given;
      b.probe_until := b.at + make_interval(secs => {probe});
      wait_seconds := {probe};
      b.level := 0;
    END IF;
  ELSE
    IF taken AND b.cut_at < b.at - make_interval(secs => {cut}) THEN
      b.rate := least(configured,
        b.rate + configured / {grow} * least(1, greatest(0, extract(epoch FROM b.at - b.grown_at))));
      b.grown_at := b.at;
    END IF;
    burst := greatest(1, b.rate * {burst});
    kept := CASE WHEN burst < 2 THEN 0 ELSE burst / 2 END;
    b.level := least(burst, b.level + unused);
    live_given := greatest(0, least(live + ahead, floor(b.level)));
    b.level := b.level - live_given;
    IF live_given < live + ahead AND b.level < 1 THEN
      b.short_until := b.at + make_interval(secs => {short});
    END IF;
    IF b.short_until <= b.at THEN
      other_given := greatest(0, least(other, floor(b.level - kept)));
    ELSIF b.spare_at <= b.at THEN
      other_given := least(other, greatest(1, floor(burst * {share})));
      b.spare_at := b.at + make_interval(secs => other_given / (b.rate * {share}));
    END IF;
    b.level := b.level - other_given;
    missing := live - live_given;  -- Negative if some permits are ahead.
    IF missing > 0 THEN
      wait_seconds := greatest(0, least(missing, greatest(1, burst / 5)) - b.level) / b.rate;
    ELSIF other_given < other AND b.short_until > b.at THEN
      wait_seconds := extract(epoch FROM least(b.spare_at, b.short_until) - b.at);
    ELSIF other_given < other THEN
      wait_seconds :=
        greatest(0, kept + least(other - other_given, greatest(1, burst / 5)) - b.level) / b.rate;
    END IF;
  END IF;
  UPDATE ledger.budgets SET rate = b.rate, level = b.level, at = b.at, short_until = b.short_until,
    spare_at = b.spare_at, probe_until = b.probe_until, grown_at = b.grown_at
    WHERE account = of_account AND api = of_api;
END $$
"""

# Kommo refused a call and asks to wait `asked` seconds (0: it does not say); `slower`: it says we are too
# fast.
REFUSE = """
CREATE OR REPLACE FUNCTION ledger.pause_budget(
  of_account text, of_api text, configured double precision, asked double precision, slower boolean,
  OUT wait_seconds double precision) LANGUAGE plpgsql AS $$
DECLARE b ledger.budgets;
BEGIN
  b := ledger.budget(of_account, of_api, configured);
  IF slower AND b.cut_at <= b.at - make_interval(secs => {cut}) THEN
    b.rate := greatest(least(1, configured), b.rate / 2);
    b.cut_at := b.at;
  END IF;
  IF b.paused_until <= b.at THEN
    b.refusals := b.refusals + 1;
  END IF;
  wait_seconds := CASE WHEN asked > 0 THEN least(asked, {pause})
    ELSE least({refused}, 2 ^ least(20, greatest(0, b.refusals - {at_once}))) END;
  b.paused_until := greatest(b.paused_until, b.at + make_interval(secs => wait_seconds));
  UPDATE ledger.budgets SET rate = b.rate, level = 0, at = b.at, cut_at = b.cut_at, refusals = b.refusals,
    paused_until = b.paused_until, probe_until = '-infinity', closed = true
    WHERE account = of_account AND api = of_api;
  wait_seconds := extract(epoch FROM b.paused_until - b.at);
END $$
"""

OPEN = """UPDATE ledger.budgets SET closed = false, refusals = 0, probe_until = '-infinity'
 WHERE account = %s AND api = %s AND closed AND paused_until <= clock_timestamp()"""

_LIMITS = {
    "burst": BURST_SECONDS,
    "short": SHORT_SECONDS,
    "share": SHARE,
    "grow": GROW_SECONDS,
    "cut": CUT_SECONDS,
    "probe": PROBE_SECONDS,
    "pause": PAUSE_SECONDS_MAX,
    "refused": REFUSED_SECONDS_MAX,
    "at_once": REFUSALS_AT_ONCE,
}
STATEMENTS = (TABLE, *(text.format(**_LIMITS) for text in (CURRENT, TAKE, REFUSE)))
GRANT = "GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.budgets TO {role};"
