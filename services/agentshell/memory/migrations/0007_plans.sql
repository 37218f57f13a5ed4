-- Search by plans that a connection makes once: to plan a look through an index anew took as long as the look.

-- Makes the index of a length that is used for the first time, and the function of its name that looks through it. Its plan is
-- kept, since the length is a literal in it, and whatever it is asked for it is to use this index.
CREATE OR REPLACE FUNCTION index_vectors(slot integer, dimension integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name CONSTANT text := format('records_by_embedding_%s_%s', slot, dimension);
    vector CONSTANT text := CASE slot WHEN 1 THEN 'embedding' ELSE 'embedding_2' END;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(name, 0));
    PERFORM '[0]'::public.halfvec;  -- Loads pgvector, without which nobody but a superuser may name its settings.
    IF to_regclass('memory.' || name) IS NULL THEN
        EXECUTE format('CREATE INDEX %1$I ON memory.records USING hnsw ((%2$I::public.halfvec(%3$s)) halfvec_cosine_ops)
            WITH (m = 16, ef_construction = 64) WHERE vector_dims(%2$I) = %3$s', name, vector, dimension);
        EXECUTE format('ALTER INDEX memory.%I ALTER COLUMN 1 SET STATISTICS 0', name);
    END IF;
    IF to_regproc('memory.' || name) IS NULL THEN
        EXECUTE format($function$
            CREATE FUNCTION memory.%1$I(
                looked_in text[], probe halfvec, filter jsonb, kinds smallint[], wanted integer,
                OUT places text[], OUT record_ids text[], OUT distances float8[]
            ) LANGUAGE plpgsql
                -- The order comes from the index, and it goes on until enough pass.
                SET enable_sort = off SET plan_cache_mode = force_generic_plan SET hnsw.iterative_scan = relaxed_order
            AS $body$
            BEGIN
                WITH near AS MATERIALIZED (
                    SELECT place, record_id, %2$I::halfvec(%3$s) <=> probe::halfvec(%3$s) AS distance FROM memory.records
                    WHERE place = ANY (looked_in) AND (expire_time IS NULL OR expire_time > now())
                        AND (filter IS NULL OR metadata @> filter) AND (cardinality(kinds) = 0 OR kind = ANY (kinds))
                        AND vector_dims(%2$I) = %3$s
                    ORDER BY %2$I::halfvec(%3$s) <=> probe::halfvec(%3$s) LIMIT wanted
                )
                SELECT array_agg(place ORDER BY distance, record_id), array_agg(record_id ORDER BY distance, record_id),
                    array_agg(distance ORDER BY distance, record_id)
                INTO places, record_ids, distances FROM near;
            END $body$ $function$, name, vector, dimension);
    END IF;
END $$;
DO $$
BEGIN
    PERFORM memory.index_vectors(split_part(relname, '_', 4)::integer, split_part(relname, '_', 5)::integer)
    FROM pg_class WHERE relnamespace = 'memory'::regnamespace AND relname ~ '^records_by_embedding_[12]_[0-9]+$';
END $$;

-- Compares all that pass, `most` at the most; how many pass decides about its plan, which is made each time. What is kept of
-- each that passes is as little as can be: that is half of the time.
CREATE FUNCTION compared(
    looked_in text[], probe halfvec, of_slot integer, filter jsonb, kinds smallint[], wanted integer, most bigint,
    OUT passed bigint, OUT places text[], OUT record_ids text[], OUT distances float8[]
) LANGUAGE plpgsql SET plan_cache_mode = force_custom_plan AS $$
BEGIN
    WITH passing AS MATERIALIZED (
        SELECT ctid AS at, CASE of_slot WHEN 1 THEN embedding ELSE embedding_2 END <=> probe AS distance
        FROM memory.records
        WHERE place = ANY (looked_in) AND (expire_time IS NULL OR expire_time > now())
            AND (filter IS NULL OR metadata @> filter) AND (cardinality(kinds) = 0 OR kind = ANY (kinds))
            AND vector_dims(CASE of_slot WHEN 1 THEN embedding ELSE embedding_2 END) = vector_dims(probe)
        LIMIT most
    ), near AS MATERIALIZED (
        SELECT place, record_id, distance FROM (SELECT * FROM passing ORDER BY distance LIMIT wanted) AS found
            JOIN memory.records ON records.ctid = found.at
    )
    SELECT (SELECT count(*) FROM passing), array_agg(place ORDER BY distance, record_id),
        array_agg(record_id ORDER BY distance, record_id), array_agg(distance ORDER BY distance, record_id)
    INTO passed, places, record_ids, distances FROM near;
END $$;

-- As in 0002, but for the plans, and for `expected`: how many pass, where somebody has found out a moment ago. NULL: the
-- planner is asked. Where a length has no index, all are compared.
DROP FUNCTION nearest;
CREATE FUNCTION nearest(
    looked_in text[], probe halfvec, of_embedder text, of_slot integer, filter jsonb, kinds smallint[], wanted integer,
    exact_least integer, exact_factor float8, effort integer, expected bigint,
    OUT plan integer, OUT passed bigint, OUT places text[], OUT record_ids text[], OUT distances float8[]
) LANGUAGE plpgsql AS $$
DECLARE
    by_index CONSTANT regproc := to_regproc(format('memory.records_by_embedding_%s_%s', of_slot, vector_dims(probe)));
    exact_most CONSTANT bigint := greatest(exact_least, sqrt(exact_factor * greatest(
        (SELECT reltuples FROM pg_class WHERE oid = 'memory.records'::regclass), 0)));
    explained json;
BEGIN
    passed := expected;
    IF passed IS NULL THEN
        EXECUTE 'EXPLAIN (FORMAT JSON) SELECT FROM memory.records
            WHERE place = ANY ($1) AND (expire_time IS NULL OR expire_time > now())
                AND ($2 IS NULL OR metadata @> $2) AND (cardinality($3) = 0 OR kind = ANY ($3))'
            INTO explained USING looked_in, filter, kinds;
        passed := (explained -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
    END IF;
    IF passed <= exact_most OR by_index IS NULL THEN
        SELECT * INTO passed, places, record_ids, distances FROM memory.compared(
            looked_in, probe, of_slot, filter, kinds, wanted, CASE WHEN by_index IS NOT NULL THEN 2 * exact_most + 1 END);
        plan := 1;
    END IF;
    IF plan IS NULL OR (passed > 2 * exact_most AND by_index IS NOT NULL) THEN
        PERFORM set_config('hnsw.ef_search', effort::text, true);
        EXECUTE format('SELECT * FROM %s($1, $2, $3, $4, $5)', by_index)
            INTO places, record_ids, distances USING looked_in, probe, filter, kinds, wanted;
        plan := 2;
        IF coalesce(cardinality(places), 0) < wanted THEN
            SELECT * INTO passed, places, record_ids, distances
                FROM memory.compared(looked_in, probe, of_slot, filter, kinds, wanted, NULL);
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
