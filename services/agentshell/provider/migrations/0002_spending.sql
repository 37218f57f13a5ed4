-- What was used and what it cost: the accounts that budgets are kept in, and the ledger by day.

-- What was spent of a budget in its period, or by a turn. What is reserved counts as spent until it is settled.
CREATE TABLE provider.spending (
    tenant_id   text   NOT NULL,
    name        text   NOT NULL,  -- Such as `day/2026-11-21/session/cost/s-1` (micro-USD) or `turn/t-1` (tokens).
    spent       bigint NOT NULL DEFAULT 0 CHECK (spent >= 0),
    expire_date date   NOT NULL,  -- From when on nobody asks for it any more.
    PRIMARY KEY (tenant_id, name)
) WITH (fillfactor = 20);  -- Room for an amount's next versions on the same page.
CREATE INDEX spending_by_age ON provider.spending (expire_date);

-- The last batch of each writing process, so that one whose answer was lost may be sent again and counts once.
CREATE TABLE provider.writers (
    writer_id  bytea       PRIMARY KEY,
    batch      bigint      NOT NULL,
    refused_by integer[]   NOT NULL DEFAULT '{}',  -- What provider.spend answered.
    spent      bigint[]    NOT NULL DEFAULT '{}',
    write_time timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20);

-- Changes accounts, never below 0, then grants claims in order, each on several accounts at once or on none. Returns a
-- row a claim: which of its accounts refused it (counted from 1; 0: it is granted) and what was spent there.
-- The accounts are the parallel arrays tenant_ids, names, kept_days and changes, and none is there twice. Claim i has
-- the entries after ends[i - 1] up to ends[i]: the number of an account, what is asked of it, and the most that may be
-- spent there. Only what can grow waits for the disk: an amount that was given back and is lost with the machine is
-- counted as spent, which a budget survives. The planner settings pin the index, as log.append's do.
CREATE FUNCTION provider.spend(
    by_writer bytea, of_batch bigint, durable boolean,
    tenant_ids text[], names text[], kept_days integer[], changes bigint[],
    ends integer[], accounts integer[], asked bigint[], most bigint[]
) RETURNS TABLE (refused_by integer, spent bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    amounts  bigint[];
    refusals integer[] := '{}';
    found_at bigint[] := '{}';
    entry    integer := 1;
    refusal  integer;
    made     integer;
BEGIN
    IF NOT durable THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    -- The lock on the writer's row keeps apart two that are sent of one batch; the later finds what the first answered.
    INSERT INTO provider.writers AS w (writer_id, batch) VALUES (by_writer, of_batch)
    ON CONFLICT (writer_id) DO UPDATE SET batch = excluded.batch, write_time = now() WHERE w.batch < excluded.batch;
    IF NOT FOUND THEN
        RETURN QUERY SELECT a.refused_by, a.spent FROM provider.writers w, unnest(w.refused_by, w.spent)
            WITH ORDINALITY AS a (refused_by, spent, position)
            WHERE w.writer_id = by_writer AND w.batch = of_batch ORDER BY a.position;
        RETURN;
    END IF;
    -- All are made before any is locked, both in one order for all processes, so that no two wait for each other.
    INSERT INTO provider.spending (tenant_id, name, expire_date)
    SELECT tenant_id, name, current_date + days FROM unnest(tenant_ids, names, kept_days) AS a (tenant_id, name, days)
    ORDER BY tenant_id, name
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    PERFORM FROM unnest(tenant_ids, names) AS a (tenant_id, name) JOIN provider.spending s USING (tenant_id, name)
    ORDER BY tenant_id, name FOR NO KEY UPDATE OF s;
    SELECT array_agg(greatest(0, s.spent + a.change) ORDER BY a.position) INTO amounts
    FROM unnest(tenant_ids, names, changes) WITH ORDINALITY AS a (tenant_id, name, change, position)
    JOIN provider.spending s USING (tenant_id, name);
    FOR claim IN 1 .. cardinality(ends) LOOP
        refusal := 0;
        FOR i IN entry .. ends[claim] LOOP
            IF amounts[accounts[i]] + asked[i] > most[i] THEN
                refusal := i - entry + 1;
                EXIT;
            END IF;
        END LOOP;
        refusals := refusals || refusal;
        IF refusal > 0 THEN
            found_at := found_at || amounts[accounts[entry + refusal - 1]];
        ELSE
            found_at := found_at || 0::bigint;
            FOR i IN entry .. ends[claim] LOOP
                amounts[accounts[i]] := amounts[accounts[i]] + asked[i];
            END LOOP;
        END IF;
        entry := ends[claim] + 1;
    END LOOP;
    UPDATE provider.spending s SET spent = a.spent
    FROM unnest(tenant_ids, names, amounts) AS a (tenant_id, name, spent)
    WHERE s.tenant_id = a.tenant_id AND s.name = a.name AND s.spent <> a.spent;
    UPDATE provider.writers SET refused_by = refusals, spent = found_at WHERE writer_id = by_writer;
    IF made > 0 THEN  -- What is old goes, a few for each that is new, so that the table needs no sweeper.
        DELETE FROM provider.spending WHERE (tenant_id, name) IN (
            SELECT tenant_id, name FROM provider.spending WHERE expire_date < current_date
            ORDER BY expire_date LIMIT 2 * made FOR UPDATE SKIP LOCKED
        );
    END IF;
    IF of_batch = 1 THEN
        DELETE FROM provider.writers WHERE write_time < now() - interval '7 days' AND writer_id <> by_writer;
    END IF;
    RETURN QUERY SELECT * FROM unnest(refusals, found_at);
END
$$;

-- What calls to vendors used.
CREATE TABLE provider.usage (
    tenant_id           text    NOT NULL,
    day                 date    NOT NULL,  -- In UTC.
    key                 bytea   NOT NULL,  -- Of the five that follow, which may be too long for an index.
    session_id          text    NOT NULL,
    personality_id      text    NOT NULL,
    provider            text    NOT NULL,
    model               text    NOT NULL,
    principal_id        text    NOT NULL,
    calls               bigint  NOT NULL,
    failed_calls        bigint  NOT NULL,
    unpriced_calls      bigint  NOT NULL,
    estimated_calls     bigint  NOT NULL,
    cached_answers      bigint  NOT NULL,
    cost_micros         bigint  NOT NULL,
    input_tokens        bigint  NOT NULL,
    cached_input_tokens bigint  NOT NULL,
    cache_write_tokens  bigint  NOT NULL,
    image_input_tokens  bigint  NOT NULL,
    audio_input_tokens  bigint  NOT NULL,
    output_tokens       bigint  NOT NULL,
    reasoning_tokens    bigint  NOT NULL,
    audio_output_tokens bigint  NOT NULL,
    PRIMARY KEY (tenant_id, day, key)
);
