-- The lease of a message whose work has been taken from its worker ends: the slot is free, the message
-- is gone. What the worker still says of it finds nothing.
--
-- ARGV: root, correlation id
-- Returns 1, or 0 when no worker has it.
local root = ARGV[1]
local worker, tag = string.match(redis.call('HGET', root .. ':held', ARGV[2]) or '', '^(.*)|([^|]*)$')
local lease = worker and release(root, worker, tag)
if not lease then return 0 end
wake(root, lease.domain, lease.tenant)
return 1
