-- Words at any size: the rarest words of a query decide, however many records have its common ones.

-- As in 0002, with three differences. A word that the sample lacks counts as the rarest: it was left out, and with it the
-- one record in a million that has it. Where those with the rarer words are fewer than wanted, others follow. And no more
-- than `most` are ranked of either, whatever a word matches: of a million that all have it, that was two seconds.
CREATE OR REPLACE FUNCTION worded(
    looked_in text[], query text, filter jsonb, kinds smallint[], wanted integer,
    OUT places text[], OUT record_ids text[], OUT scores float8[]
) LANGUAGE plpgsql AS $$
DECLARE
    sampled CONSTANT integer := 500;
    worth CONSTANT integer := 1000;
    most CONSTANT integer := 5000;
    any_word CONSTANT tsquery := memory.any_word(query);
    matching CONSTANT text := 'FROM memory.records WHERE words @@ %s AND place = ANY ($1)'
        || ' AND (expire_time IS NULL OR expire_time > now())'
        || CASE WHEN filter IS NULL THEN '' ELSE ' AND metadata @> $3' END
        || CASE WHEN cardinality(kinds) = 0 THEN '' ELSE ' AND kind = ANY ($4)' END;
    sample tsvector[];
    explained json;
    matches float8;  -- NULL: the sample is all of them.
    words tsquery[];
    weights float8[];
    rare tsquery;
    common tsquery;
BEGIN
    IF any_word IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT array_agg(words) FROM (SELECT words %s LIMIT %s) AS sample', format(matching, '$2'), sampled)
        INTO sample USING looked_in, any_word, filter, kinds;
    IF sample IS NULL THEN
        RETURN;
    END IF;
    IF cardinality(sample) = sampled THEN
        EXECUTE 'EXPLAIN (FORMAT JSON) SELECT ' || format(matching, '$2')
            INTO explained USING looked_in, any_word, filter, kinds;
        matches := (explained #>> '{0,Plan,Plan Rows}')::float8;
    END IF;
    WITH of_query AS (
        SELECT word, seen, coalesce(matches / sampled * sum(seen) OVER (ORDER BY seen, lexeme), 0) AS together
        FROM unnest(tsvector_to_array(to_tsvector('english', query))) AS of_query (lexeme)
            CROSS JOIN LATERAL (SELECT memory.word(lexeme) AS word) AS made
            CROSS JOIN LATERAL (SELECT count(*) AS seen FROM unnest(sample) AS one (words) WHERE one.words @@ word) AS counted
        WHERE seen > 0 OR matches IS NOT NULL
    )
    SELECT array_agg(word), array_agg(ln(1 + cardinality(sample) / (seen + 0.5))),
        string_agg(word::text, ' | ') FILTER (WHERE together <= worth)::tsquery,
        string_agg(word::text, ' | ') FILTER (WHERE together > worth)::tsquery
    INTO words, weights, rare, common FROM of_query;
    EXECUTE format('WITH rare AS MATERIALIZED (
            SELECT place, record_id, words %1$s LIMIT %3$s
        ), common AS MATERIALIZED (
            SELECT place, record_id, words %2$s AND ($8 IS NULL OR NOT words @@ $8)
            LIMIT CASE WHEN (SELECT count(*) FROM rare) < $5 THEN %3$s ELSE 0 END
        ), best AS (
            SELECT place, record_id, (
                SELECT sum(weight * ts_rank(found.words, word)) FROM unnest($6, $7) AS counts (word, weight)
                WHERE found.words @@ word
            ) / (1 + ln(length(found.words))) AS score
            FROM (TABLE rare UNION ALL TABLE common) AS found ORDER BY score DESC, record_id LIMIT $5
        )
        SELECT array_agg(place ORDER BY score DESC, record_id), array_agg(record_id ORDER BY score DESC, record_id),
            array_agg(score / $2 ORDER BY score DESC, record_id) FROM best',
        format(matching, '$8'), format(matching, '$9'), most)
        INTO places, record_ids, scores
        USING looked_in, (SELECT sum(each) FROM unnest(weights) AS each), filter, kinds, wanted, words, weights, rare, common;
END $$;
