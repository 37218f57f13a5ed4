-- Receipts stay for good, and name nobody: a user is kept as the digest of tenant and user, as stores/receipts.py makes it.

UPDATE receipts SET user_id = 'sha256:' || encode(sha256(convert_to(tenant_id || ' ' || user_id, 'UTF8')), 'hex')
WHERE user_id <> '';
UPDATE receipts SET namespace =
    'user/sha256:' || encode(sha256(convert_to(tenant_id || ' ' || substr(namespace, length('user/') + 1), 'UTF8')), 'hex')
WHERE starts_with(namespace, 'user/');
ALTER TABLE receipts RENAME COLUMN user_id TO user_digest;
