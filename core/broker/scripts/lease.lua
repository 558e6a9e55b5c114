-- The tenant that the ring gave to a worker that waited is served once.
--
-- ARGV: root, domain, tenant, its start time in the ring, worker, lease (ms), ageing (ms a rank)
-- Returns queue, delivery tag, message; or nothing.
local worker = {name = ARGV[5], lease_ms = tonumber(ARGV[6]), ageing = tonumber(ARGV[7])}
return serve(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), worker) or false
