-- The schema that `chatledger migrate` of 0.2.1 makes (pg_dump), and its version.
CREATE SCHEMA ledger;
CREATE FUNCTION ledger.append(unit integer[], stream uuid[], version bigint[], topic text[], state bytea[], clock_unit integer[], chat uuid[], before bigint[], after bigint[], OUT bad integer[], OUT head bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
  moved bigint;
  made bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE 'an append needs READ COMMITTED';
  END IF;
  PERFORM pg_advisory_xact_lock(109299962740737);
  SELECT coalesce(max(notification_id), 0) INTO head FROM "ledger"."stored_events";
  BEGIN
    IF EXISTS (SELECT FROM unnest(stream, version, topic) AS i(o, v, t)
        JOIN "ledger"."stored_events" e ON e.originator_id = i.o AND e.originator_version = i.v
        WHERE i.t IS NULL) THEN
      RAISE unique_violation;
    END IF;
    IF cardinality(chat) > 0 THEN
      EXECUTE 'UPDATE "ledger".clocks k SET msec = i.a FROM unnest($1, $2, $3) AS i(c, b, a)
        WHERE k.conversation = i.c AND k.msec = i.b' USING chat, before, after;
      GET DIAGNOSTICS moved = ROW_COUNT;
      IF moved < cardinality(chat) THEN
        INSERT INTO "ledger".clocks AS k
          SELECT i.c, i.a FROM unnest(chat, before, after) AS i(c, b, a) WHERE i.b = 0
          ON CONFLICT (conversation) DO NOTHING;
        GET DIAGNOSTICS made = ROW_COUNT;
        IF moved + made < cardinality(chat) THEN
          RAISE unique_violation;
        END IF;
      END IF;
    END IF;
    INSERT INTO "ledger"."stored_events"
        (originator_id, originator_version, topic, state, notification_id)
      SELECT i.o, i.v, i.t, i.s, head + i.n
      FROM unnest(stream, version, topic, state) WITH ORDINALITY AS i(o, v, t, s, n)
      WHERE i.t IS NOT NULL;
  EXCEPTION WHEN unique_violation THEN
    EXECUTE 'SELECT coalesce(array_agg(DISTINCT i.u), ''{}'') FROM unnest($1, $2, $3) AS i(u, o, v)
      JOIN "ledger"."stored_events" e ON e.originator_id = i.o AND e.originator_version = i.v'
      INTO bad USING unit, stream, version;
    IF cardinality(chat) > 0 THEN
      EXECUTE 'SELECT $4 || coalesce(array_agg(DISTINCT i.u), ''{}'') FROM unnest($1, $2, $3) AS i(u, c, b)
        JOIN "ledger".clocks k ON k.conversation = i.c AND k.msec <> i.b'
        INTO bad USING clock_unit, chat, before, bad;
      INSERT INTO "ledger".clocks AS k
        SELECT i.c, i.a FROM unnest(clock_unit, chat, after) AS i(u, c, a) WHERE i.u <> ALL (bad)
        ON CONFLICT (conversation) DO UPDATE SET msec = excluded.msec;
    END IF;
    INSERT INTO "ledger"."stored_events"
        (originator_id, originator_version, topic, state, notification_id)
      SELECT i.o, i.v, i.t, i.s, head + row_number() OVER (ORDER BY i.n)
      FROM unnest(unit, stream, version, topic, state) WITH ORDINALITY AS i(u, o, v, t, s, n)
      WHERE i.u <> ALL (bad) AND i.t IS NOT NULL;
  END;
  NOTIFY "ledger_stored_events";
END $_$;
CREATE UNLOGGED TABLE ledger.budgets (
    account text NOT NULL,
    api text NOT NULL,
    rate double precision NOT NULL,
    level double precision NOT NULL,
    at timestamp with time zone NOT NULL,
    short_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    spare_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    cut_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    paused_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    probe_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    grown_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    closed boolean DEFAULT false NOT NULL,
    refusals integer DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');
CREATE FUNCTION ledger.budget(of_account text, of_api text, configured double precision) RETURNS ledger.budgets
    LANGUAGE plpgsql
    AS $$
DECLARE b ledger.budgets; passed double precision; moment timestamptz;
BEGIN
  SELECT * INTO b FROM ledger.budgets WHERE account = of_account AND api = of_api FOR UPDATE;
  IF NOT FOUND THEN
    INSERT INTO ledger.budgets (account, api, rate, level, at)
      VALUES (of_account, of_api, configured, greatest(1, configured * 0.1), clock_timestamp())
      ON CONFLICT DO NOTHING;
    SELECT * INTO b FROM ledger.budgets WHERE account = of_account AND api = of_api FOR UPDATE;
  END IF;
  moment := clock_timestamp();
  passed := greatest(0, extract(epoch FROM moment - b.at));
  b.rate := least(b.rate, configured);
  b.level := least(greatest(1, b.rate * 0.1), b.level + b.rate * passed);
  b.at := moment;
  RETURN b;
END $$;
CREATE FUNCTION ledger.pause_budget(of_account text, of_api text, configured double precision, asked double precision, slower boolean, OUT wait_seconds double precision) RETURNS double precision
    LANGUAGE plpgsql
    AS $$
DECLARE b ledger.budgets;
BEGIN
  b := ledger.budget(of_account, of_api, configured);
  IF slower AND b.cut_at <= b.at - make_interval(secs => 1.0) THEN
    b.rate := greatest(least(1, configured), b.rate / 2);
    b.cut_at := b.at;
  END IF;
  IF b.paused_until <= b.at THEN
    b.refusals := b.refusals + 1;
  END IF;
  wait_seconds := CASE WHEN asked > 0 THEN least(asked, 3600.0)
    ELSE least(60.0, 2 ^ least(20, greatest(0, b.refusals - 2))) END;
  b.paused_until := greatest(b.paused_until, b.at + make_interval(secs => wait_seconds));
  UPDATE ledger.budgets SET rate = b.rate, level = 0, at = b.at, cut_at = b.cut_at, refusals = b.refusals,
    paused_until = b.paused_until, probe_until = '-infinity', closed = true
    WHERE account = of_account AND api = of_api;
  wait_seconds := extract(epoch FROM b.paused_until - b.at);
END $$;
CREATE FUNCTION ledger.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  RAISE EXCEPTION 'the ledger is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE FUNCTION ledger.take_permits(of_account text, of_api text, configured double precision, live integer, ahead integer, other integer, unused integer, taken boolean, OUT live_given integer, OUT other_given integer, OUT wait_seconds double precision, OUT probe boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
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
      b.probe_until := b.at + make_interval(secs => 10.0);
      wait_seconds := 10.0;
      b.level := 0;
    END IF;
  ELSE
    IF taken AND b.cut_at < b.at - make_interval(secs => 1.0) THEN
      b.rate := least(configured,
        b.rate + configured / 60.0 * least(1, greatest(0, extract(epoch FROM b.at - b.grown_at))));
      b.grown_at := b.at;
    END IF;
    burst := greatest(1, b.rate * 0.1);
    kept := CASE WHEN burst < 2 THEN 0 ELSE burst / 2 END;
    b.level := least(burst, b.level + unused);
    live_given := greatest(0, least(live + ahead, floor(b.level)));
    b.level := b.level - live_given;
    IF live_given < live + ahead AND b.level < 1 THEN
      b.short_until := b.at + make_interval(secs => 0.5);
    END IF;
    IF b.short_until <= b.at THEN
      other_given := greatest(0, least(other, floor(b.level - kept)));
    ELSIF b.spare_at <= b.at THEN
      other_given := least(other, greatest(1, floor(burst * 0.1)));
      b.spare_at := b.at + make_interval(secs => other_given / (b.rate * 0.1));
    END IF;
    b.level := b.level - other_given;
    missing := live - live_given;  -- Less than nothing, if some are ahead.
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
END $$;
CREATE TABLE ledger.clocks (
    conversation uuid NOT NULL,
    msec bigint NOT NULL
)
WITH (fillfactor='70');
CREATE TABLE ledger.connecting (
    channel text NOT NULL,
    account_id text DEFAULT ''::text NOT NULL,
    tried_at timestamp with time zone NOT NULL,
    problem text
);
CREATE TABLE ledger.consents (
    nonce bytea NOT NULL,
    expires_at timestamp with time zone NOT NULL
);
CREATE TABLE ledger.imports (
    id uuid NOT NULL,
    channel text NOT NULL,
    account_id text NOT NULL,
    began bigint NOT NULL,
    lines bigint NOT NULL,
    done boolean NOT NULL,
    report bytea NOT NULL,
    updated_at timestamp with time zone NOT NULL
);
CREATE TABLE ledger.links (
    account_id text NOT NULL,
    chat_id text NOT NULL,
    contact_id bigint NOT NULL,
    lead_id bigint,
    changed bigint NOT NULL,
    told_at timestamp with time zone NOT NULL
);
CREATE TABLE ledger.meta (
    one boolean DEFAULT true NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    version integer NOT NULL,
    CONSTRAINT meta_one_check CHECK (one)
);
CREATE TABLE ledger.refused (
    id uuid NOT NULL,
    scope_id text NOT NULL,
    received_at timestamp with time zone NOT NULL,
    reason text NOT NULL,
    body bytea NOT NULL
);
CREATE TABLE ledger.secrets (
    channel text NOT NULL,
    channel_id text NOT NULL,
    sealed bytea NOT NULL
);
CREATE TABLE ledger.stored_events (
    originator_id uuid NOT NULL,
    originator_version bigint NOT NULL,
    topic text,
    state bytea,
    notification_id bigint NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_analyze_threshold='1000', autovacuum_analyze_scale_factor='0.05');
ALTER TABLE ONLY ledger.stored_events ALTER COLUMN state SET STORAGE EXTERNAL;
CREATE TABLE ledger.tokens (
    account_id text NOT NULL,
    crm_id bigint NOT NULL,
    crm_url text NOT NULL,
    sealed bytea NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    state text NOT NULL,
    reason text NOT NULL,
    generation bigint NOT NULL
);
ALTER TABLE ONLY ledger.budgets
    ADD CONSTRAINT budgets_pkey PRIMARY KEY (account, api);
ALTER TABLE ONLY ledger.clocks
    ADD CONSTRAINT clocks_pkey PRIMARY KEY (conversation);
ALTER TABLE ONLY ledger.connecting
    ADD CONSTRAINT connecting_pkey PRIMARY KEY (channel, account_id);
ALTER TABLE ONLY ledger.consents
    ADD CONSTRAINT consents_pkey PRIMARY KEY (nonce);
ALTER TABLE ONLY ledger.imports
    ADD CONSTRAINT imports_pkey PRIMARY KEY (id);
ALTER TABLE ONLY ledger.links
    ADD CONSTRAINT links_pkey PRIMARY KEY (account_id, chat_id);
ALTER TABLE ONLY ledger.meta
    ADD CONSTRAINT meta_pkey PRIMARY KEY (one);
ALTER TABLE ONLY ledger.refused
    ADD CONSTRAINT refused_pkey PRIMARY KEY (id);
ALTER TABLE ONLY ledger.secrets
    ADD CONSTRAINT secrets_channel_id_key UNIQUE (channel_id);
ALTER TABLE ONLY ledger.secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (channel);
ALTER TABLE ONLY ledger.stored_events
    ADD CONSTRAINT stored_events_pkey PRIMARY KEY (originator_id, originator_version);
ALTER TABLE ONLY ledger.tokens
    ADD CONSTRAINT tokens_pkey PRIMARY KEY (account_id);
CREATE INDEX links_told_at ON ledger.links USING btree (told_at);
CREATE UNIQUE INDEX stored_events_notification_id_idx ON ledger.stored_events USING btree (notification_id);
CREATE INDEX tokens_crm_id ON ledger.tokens USING btree (crm_id);
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON ledger.stored_events FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
GRANT USAGE ON SCHEMA ledger TO chatledger;
REVOKE ALL ON FUNCTION ledger.append(unit integer[], stream uuid[], version bigint[], topic text[], state bytea[], clock_unit integer[], chat uuid[], before bigint[], after bigint[], OUT bad integer[], OUT head bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION ledger.append(unit integer[], stream uuid[], version bigint[], topic text[], state bytea[], clock_unit integer[], chat uuid[], before bigint[], after bigint[], OUT bad integer[], OUT head bigint) TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.budgets TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.clocks TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.connecting TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.consents TO chatledger;
GRANT SELECT,INSERT,UPDATE ON TABLE ledger.imports TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.links TO chatledger;
GRANT SELECT ON TABLE ledger.meta TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.refused TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.secrets TO chatledger;
GRANT SELECT ON TABLE ledger.stored_events TO chatledger;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.tokens TO chatledger;
INSERT INTO ledger.meta (version) VALUES (2);
