-- Searches that plan nothing: to plan a comparison took as long as to compare 150 vectors.

-- How many records pass, and by which index the planner would get at them: 1, one of places; 2, that of metadata; 3, none or
-- several.
CREATE FUNCTION expected(looked_in text[], filter jsonb, kinds smallint[], OUT passed bigint, OUT way integer)
LANGUAGE plpgsql AS $$
DECLARE
    explained json;
    index text;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT JSON) SELECT FROM memory.records
        WHERE place = ANY ($1) AND (expire_time IS NULL OR expire_time > now())
            AND ($2 IS NULL OR metadata @> $2) AND (cardinality($3) = 0 OR kind = ANY ($3))'
        INTO explained USING looked_in, filter, kinds;
    passed := (explained #>> '{0,Plan,Plan Rows}')::float8;
    index := coalesce(explained #>> '{0,Plan,Index Name}', explained #>> '{0,Plan,Plans,0,Index Name}');
    way := CASE WHEN index IS NULL THEN 3 WHEN index = 'records_by_metadata' THEN 2 ELSE 1 END;
END $$;

-- Compares all that pass, `most` at the most, in a way that the planner found before. Each way has a plan that is kept, and can
-- be of its own index alone: it states the other conditions so that no index serves them.
ALTER FUNCTION compared RENAME TO compared_anew;
ALTER FUNCTION compared_anew SET enable_seqscan = on;
DO $$
DECLARE
    branch CONSTANT text := $branch$
        WHEN '%1$s' THEN
            WITH passing AS MATERIALIZED (
                SELECT ctid AS at, %2$I <=> probe AS distance FROM memory.records
                WHERE %3$s AND (expire_time IS NULL OR expire_time > now())
                    AND (cardinality(kinds) = 0 OR kind = ANY (kinds)) AND vector_dims(%2$I) = vector_dims(probe)
                LIMIT most
            ), near AS MATERIALIZED (
                SELECT place, record_id, distance FROM (SELECT * FROM passing ORDER BY distance LIMIT wanted) AS found
                    JOIN memory.records ON records.ctid = found.at
            )
            SELECT (SELECT count(*) FROM passing), array_agg(place ORDER BY distance, record_id),
                array_agg(record_id ORDER BY distance, record_id), array_agg(distance ORDER BY distance, record_id)
            INTO passed, places, record_ids, distances FROM near; $branch$;
    by_place CONSTANT text := 'place = ANY (looked_in) AND (filter IS NULL OR metadata @> filter)';
    by_metadata CONSTANT text := '(place = ANY (looked_in)) IS TRUE AND metadata @> filter';
BEGIN
    EXECUTE format($function$
        CREATE FUNCTION memory.compared(
            looked_in text[], probe halfvec, of_slot integer, filter jsonb, kinds smallint[], wanted integer, most bigint,
            way integer, OUT passed bigint, OUT places text[], OUT record_ids text[], OUT distances float8[]
        ) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $body$
        BEGIN
            CASE way || '_' || of_slot %s
            ELSE
                SELECT * INTO passed, places, record_ids, distances
                FROM memory.compared_anew(looked_in, probe, of_slot, filter, kinds, wanted, most);
            END CASE;
        END $body$ $function$,
        format(branch, '1_1', 'embedding', by_place) || format(branch, '1_2', 'embedding_2', by_place)
            || format(branch, '2_1', 'embedding', by_metadata) || format(branch, '2_2', 'embedding_2', by_metadata));
END $$;

-- As in 0007, but for the `way`, which belongs to what is `expected`, and for what is chosen by how many records there are: it
-- finds as much among a million as among 50,000. All that pass are compared where they are at most the share `exact_factor` of
-- them: where fewer pass, the index goes by most of the nearest. Of more than 100,000 that would take most of a second, and the
-- index is asked. It keeps twice as many in view for 16 times as many records; with 60 in view it found 0.999 of the nearest
-- among 50,000, and 0.88 among a million, where 127 find 0.96.
DROP FUNCTION nearest;
CREATE FUNCTION nearest(
    looked_in text[], probe halfvec, of_embedder text, of_slot integer, filter jsonb, kinds smallint[], wanted integer,
    exact_least integer, exact_factor float8, effort integer, expected bigint, INOUT way integer,
    OUT plan integer, OUT passed bigint, OUT places text[], OUT record_ids text[], OUT distances float8[]
) LANGUAGE plpgsql AS $$
DECLARE
    by_index CONSTANT regproc := to_regproc(format('memory.records_by_embedding_%s_%s', of_slot, vector_dims(probe)));
    records CONSTANT float8 := greatest((SELECT reltuples FROM pg_class WHERE oid = 'memory.records'::regclass), 0);
    exact_most CONSTANT bigint := greatest(exact_least, least(exact_factor * records, 100000));
    in_view CONSTANT integer := least(effort * greatest(1, power(records / 50000, 0.25)), 1000);
BEGIN
    passed := expected;
    IF passed IS NULL THEN
        SELECT * INTO passed, way FROM memory.expected(looked_in, filter, kinds);
    END IF;
    IF passed <= exact_most OR by_index IS NULL THEN
        SELECT * INTO passed, places, record_ids, distances FROM memory.compared(looked_in, probe, of_slot, filter, kinds,
            wanted, CASE WHEN by_index IS NOT NULL THEN 2 * exact_most + 1 END, way);
        plan := 1;
    END IF;
    IF plan IS NULL OR (passed > 2 * exact_most AND by_index IS NOT NULL) THEN
        PERFORM set_config('hnsw.ef_search', in_view::text, true);
        EXECUTE format('SELECT * FROM %s($1, $2, $3, $4, $5)', by_index)
            INTO places, record_ids, distances USING looked_in, probe, filter, kinds, wanted;
        plan := 2;
        IF coalesce(cardinality(places), 0) < wanted THEN
            SELECT * INTO passed, places, record_ids, distances
                FROM memory.compared(looked_in, probe, of_slot, filter, kinds, wanted, NULL, way);
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
