-- Which embedder made a namespace's vectors, and which one makes them anew.

-- A record has two slots for a vector, of which one is live: a namespace changes its embedder by filling the other slot
-- while it reads this one, and then by a change of one row. None is copied, and nobody waits.
ALTER TABLE records ADD COLUMN embedding_2 halfvec;
ALTER TABLE records ALTER COLUMN embedding_2 SET STORAGE MAIN;
ALTER TABLE records ALTER COLUMN embedding_2 SET STATISTICS 0;

CREATE TABLE namespaces (
    place          text COLLATE "C" PRIMARY KEY,  -- As in records.
    tenant_id      text COLLATE "C" NOT NULL,
    namespace      text COLLATE "C" NOT NULL,
    embedder       text             NOT NULL,
    dimension      integer          NOT NULL,
    slot           smallint         NOT NULL DEFAULT 1 CHECK (slot IN (1, 2)),
    next_embedder  text,     -- NULL: none; otherwise the other slot is being filled.
    next_dimension integer,
    is_clean       boolean          NOT NULL DEFAULT true,  -- Whether the other slot is empty, where none is next.
    CHECK ((next_embedder IS NULL) = (next_dimension IS NULL))
);
CREATE INDEX namespaces_under_way ON namespaces (place) WHERE next_embedder IS NOT NULL OR NOT is_clean;
SELECT wall('namespaces', 'starts_with(place, ''knowledge/'')');

-- What is here was made when there was one embedder alone.
INSERT INTO namespaces (place, tenant_id, namespace, embedder, dimension)
SELECT place, tenant_id, namespace, 'lexical', 2048 FROM records GROUP BY place, tenant_id, namespace;
