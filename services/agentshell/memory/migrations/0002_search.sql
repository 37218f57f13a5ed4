-- How records are found, and the wall between tenants.

-- Vectors of any length. Those of one length, in one slot (0004), have an index of their own.
DROP INDEX records_by_embedding;
ALTER TABLE records ALTER COLUMN embedding TYPE halfvec;

-- Makes the index of a length that is used for the first time.
CREATE FUNCTION index_vectors(slot integer, dimension integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name CONSTANT text := format('records_by_embedding_%s_%s', slot, dimension);
    vector CONSTANT text := CASE slot WHEN 1 THEN 'embedding' ELSE 'embedding_2' END;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(name, 0));
    IF to_regclass('memory.' || name) IS NULL THEN
        EXECUTE format('CREATE INDEX %1$I ON memory.records USING hnsw ((%2$I::public.halfvec(%3$s)) halfvec_cosine_ops)
            WITH (m = 16, ef_construction = 64) WHERE vector_dims(%2$I) = %3$s', name, vector, dimension);
        EXECUTE format('ALTER INDEX memory.%I ALTER COLUMN 1 SET STATISTICS 0', name);
    END IF;
END $$;
SELECT index_vectors(1, 2048);

-- So that the planner knows how many pass a filter to about a hundredth of all: with the default it took 5 per cent for
-- 10, and the index where all should have been compared.
ALTER TABLE records ALTER COLUMN metadata SET STATISTICS 400;

-- The records of some places whose vectors are nearest to `probe`, nearest first; how they were looked through, as
-- kfm.memory.v1.SearchPlan says it; and how many pass the filters. Raises KFM01 where a place's vectors are not of the
-- space that they were taken for: asked last, of what is then committed, since a place changes its space by one commit.
--
-- Comparing all that pass costs what they are many; the index costs the more the fewer pass. Both cost the same where the
-- square of how many pass is `exact_factor` times how many there are. The planner knows about how many pass; where it takes
-- a few for many, the index finds too few, and all are compared; where it takes many for a few, it is noticed while they
-- are counted.
CREATE FUNCTION nearest(
    looked_in text[], probe halfvec, of_embedder text, of_slot integer, filter jsonb, kinds smallint[], wanted integer,
    exact_least integer, exact_factor float8, effort integer,
    OUT plan integer, OUT passed bigint, OUT places text[], OUT record_ids text[], OUT distances float8[]
) LANGUAGE plpgsql
    -- The order of vectors comes from the index where it is asked, and it goes on until enough pass.
    SET enable_sort = off SET hnsw.iterative_scan = relaxed_order SET hnsw.ef_search = 100
AS $$
DECLARE
    dimension CONSTANT integer := vector_dims(probe);
    vector CONSTANT text := CASE of_slot WHEN 1 THEN 'embedding' ELSE 'embedding_2' END;
    passing CONSTANT text := 'FROM memory.records WHERE place = ANY ($1) AND (expire_time IS NULL OR expire_time > now())'
        || CASE WHEN filter IS NULL THEN '' ELSE ' AND metadata @> $3' END
        || CASE WHEN cardinality(kinds) = 0 THEN '' ELSE ' AND kind = ANY ($4)' END;
    having_vectors CONSTANT text := format('%s AND vector_dims(%I) = %s', passing, vector, dimension);
    collected CONSTANT text := 'array_agg(place ORDER BY distance, record_id), array_agg(record_id ORDER BY distance,
        record_id), array_agg(distance ORDER BY distance, record_id) FROM near';
    -- What is kept of each that passes is as little as can be: that is half of the time.
    exactly CONSTANT text := format(
        'WITH passing AS MATERIALIZED (SELECT ctid AS at, %I <=> $2 AS distance %s LIMIT $6),
            near AS MATERIALIZED (SELECT * FROM passing ORDER BY distance LIMIT $5)
        SELECT (SELECT count(*) FROM passing), %s JOIN memory.records ON records.ctid = near.at',
        vector, having_vectors, collected);
    by_index CONSTANT text := format(
        'WITH near AS MATERIALIZED (SELECT place, record_id, %1$I::halfvec(%2$s) <=> $2::halfvec(%2$s) AS distance %3$s
            ORDER BY %1$I::halfvec(%2$s) <=> $2::halfvec(%2$s) LIMIT $5)
        SELECT %4$s', vector, dimension, having_vectors, collected);
    exact_most CONSTANT integer := greatest(exact_least, sqrt(exact_factor * greatest(
        (SELECT reltuples FROM pg_class WHERE oid = 'memory.records'::regclass), 0)));
    explained json;
BEGIN
    PERFORM set_config('hnsw.ef_search', effort::text, true);
    EXECUTE 'EXPLAIN (FORMAT JSON) SELECT ' || passing INTO explained USING looked_in, probe, filter, kinds;
    passed := (explained -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
    IF passed <= exact_most THEN
        EXECUTE exactly INTO passed, places, record_ids, distances
            USING looked_in, probe, filter, kinds, wanted, 2 * exact_most + 1;
        plan := 1;
    END IF;
    IF plan IS NULL OR passed > 2 * exact_most THEN
        EXECUTE by_index INTO places, record_ids, distances USING looked_in, probe, filter, kinds, wanted;
        plan := 2;
        IF coalesce(cardinality(places), 0) < wanted THEN
            EXECUTE exactly INTO passed, places, record_ids, distances
                USING looked_in, probe, filter, kinds, wanted, NULL::bigint;
            plan := 1;
        END IF;
    END IF;
    IF EXISTS (
        SELECT FROM unnest(looked_in) AS looked (place) LEFT JOIN memory.namespaces USING (place)
        WHERE (namespaces.embedder, namespaces.dimension, namespaces.slot) IS DISTINCT FROM
            (of_embedder, vector_dims(probe), of_slot)
    ) THEN
        RAISE EXCEPTION 'the vectors are of another space' USING ERRCODE = 'KFM01';
    END IF;
END $$;

-- A word as a query for it.
CREATE FUNCTION word(lexeme text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery
$$;

-- The records of some places that a text fits best by words, best first; any one of its words is enough. Each word counts
-- the more the rarer it is, as a sample of what matches shows. Where more match than are worth the time, only those with
-- the rarer words are looked at: a record that has none of them comes last anyway.
CREATE FUNCTION worded(
    looked_in text[], query text, filter jsonb, kinds smallint[], wanted integer,
    OUT places text[], OUT record_ids text[], OUT scores float8[]
) LANGUAGE plpgsql AS $$
DECLARE
    sampled CONSTANT integer := 500;
    ranked CONSTANT integer := 1000;
    any_word tsquery := memory.any_word(query);
    matching CONSTANT text := 'FROM memory.records WHERE words @@ $2 AND place = ANY ($1)'
        || ' AND (expire_time IS NULL OR expire_time > now())'
        || CASE WHEN filter IS NULL THEN '' ELSE ' AND metadata @> $3' END
        || CASE WHEN cardinality(kinds) = 0 THEN '' ELSE ' AND kind = ANY ($4)' END;
    sample tsvector[];
    words tsquery[];
    weights float8[];
    explained json;
    matches float8;
BEGIN
    IF any_word IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT array_agg(words) FROM (SELECT words %s LIMIT %s) AS sample', matching, sampled)
        INTO sample USING looked_in, any_word, filter, kinds;
    IF sample IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(word ORDER BY seen), array_agg(ln(1 + cardinality(sample) / (seen + 0.5)) ORDER BY seen)
    INTO words, weights
    FROM unnest(tsvector_to_array(to_tsvector('english', query))) AS of_query (lexeme)
        CROSS JOIN LATERAL (SELECT memory.word(lexeme) AS word) AS made
        CROSS JOIN LATERAL (SELECT count(*) AS seen FROM unnest(sample) AS one (words) WHERE one.words @@ word) AS counted
    WHERE seen > 0;
    IF cardinality(sample) = sampled THEN
        EXECUTE 'EXPLAIN (FORMAT JSON) SELECT ' || matching INTO explained USING looked_in, any_word, filter, kinds;
        matches := (explained -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
        SELECT string_agg(word::text, ' | ')::tsquery INTO any_word FROM (
            SELECT word, number, sum(count(one.words)) OVER (ORDER BY number) AS together
            FROM unnest(words) WITH ORDINALITY AS of_query (word, number)
                LEFT JOIN unnest(sample) AS one (words) ON one.words @@ word
            GROUP BY word, number
        ) AS from_the_rarest_on
        WHERE number = 1 OR together * matches / sampled <= ranked;
    END IF;
    EXECUTE format('WITH best AS (
            SELECT place, record_id, (
                SELECT sum(weight * ts_rank(records.words, word)) FROM unnest($6, $7) AS counts (word, weight)
                WHERE records.words @@ word
            ) / (1 + ln(length(records.words))) AS score
            %s ORDER BY score DESC, record_id LIMIT $5
        )
        SELECT array_agg(place ORDER BY score DESC, record_id), array_agg(record_id ORDER BY score DESC, record_id),
            array_agg(score / $8 ORDER BY score DESC, record_id) FROM best', matching)
        INTO places, record_ids, scores
        USING looked_in, any_word, filter, kinds, wanted, words, weights, (SELECT sum(each) FROM unnest(weights) AS each);
END $$;

-- The wall: whoever stands behind it is the role agentshell_memory, to which the policies of all tables apply, for one
-- tenant. We ourselves, who own the tables, pass by: to look through indexes (no GIN index can be used under a policy) and
-- to tidy up. A user of the database who may make no role has no wall, unless an administrator makes it and grants it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'agentshell_memory') THEN
        BEGIN
            CREATE ROLE agentshell_memory NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN  -- Roles are of all databases: another one was faster.
        END;
    END IF;
    EXECUTE 'GRANT agentshell_memory TO CURRENT_USER';
    GRANT USAGE ON SCHEMA memory TO agentshell_memory;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'no role agentshell_memory, or none of ours: tenants are kept apart by queries alone';
END $$;

CREATE FUNCTION has_wall() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM pg_roles WHERE rolname = 'agentshell_memory' AND pg_has_role(current_user, oid, 'MEMBER')
    )
$$;

-- Puts a table behind the wall. `shared` is which rows of the shared tenant all may read.
CREATE FUNCTION wall(target regclass, shared text DEFAULT 'false') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format(
        'CREATE POLICY own ON %s USING (tenant_id = (SELECT current_setting(''agentshell.tenant_id'', true)))', target);
    EXECUTE format('CREATE POLICY shared ON %s FOR SELECT USING (tenant_id = ''@shared'' AND %s)', target, shared);
    IF memory.has_wall() THEN
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO agentshell_memory', target);
    END IF;
END $$;

SELECT wall('records', 'starts_with(namespace, ''knowledge/'')');
SELECT wall('sessions');
SELECT wall('messages');
SELECT wall('requests');

-- Goes behind the wall, for a tenant, until the transaction ends.
CREATE FUNCTION stand(tenant text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('agentshell.tenant_id', tenant, true);
    IF memory.has_wall() THEN
        PERFORM set_config('role', 'agentshell_memory', true);
    END IF;
END $$;

-- What a tenant may read of these records, as the statement that asks sees them: what a search has found is read behind
-- the wall.
CREATE FUNCTION readable(tenant text, places text[], record_ids text[]) RETURNS SETOF records
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 50 SET search_path = pg_catalog, pg_temp SET agentshell.tenant_id = ''
AS $$
BEGIN
    PERFORM set_config('agentshell.tenant_id', tenant, true);
    RETURN QUERY SELECT records.* FROM unnest(places, record_ids) AS wanted (place, record_id)
        JOIN memory.records USING (place, record_id);
END $$;
DO $$
BEGIN
    IF memory.has_wall() THEN
        GRANT CREATE ON SCHEMA memory TO agentshell_memory;  -- Whose function it becomes must be able to make one.
        ALTER FUNCTION readable OWNER TO agentshell_memory;
        REVOKE CREATE ON SCHEMA memory FROM agentshell_memory;
    END IF;
END $$;
