-- What every script of the transport shares; it is put before each of them, behind one line that
-- names the domains whose tenants have caps, and the default cap.
--
-- All keys begin with the root R. Keys of one domain D (P = R .. D):
--
--   P:ring        zset    tenants that may be served now, by virtual start time
--   P:clock       string  the domain's virtual time: the latest start time served
--   P:finish      hash    tenant -> virtual time until which its last turn counts
--   P:waiting     zset    tenant -> number of its waiting messages
--   P:total       string  number of waiting messages of the domain
--   P:running     hash    tenant -> number of its leased messages
--   P:leased      string  number of leased messages of the domain
--   P:capped      set     tenants with work whose cap is reached
--   P:q:T         zset    the tenant's non-empty queues, by rank (high 0, normal 1, low 2)
--   P:m:QUEUE     list    waiting entries, newest first; an entry is
--                         "<put, ms>|<rank>|<delivery tag>|<correlation id>|<message>"
--   P:seconds:T   string  how many seconds a lease of the tenant's lasts of late; kept for a day, and
--                         in domains with caps only
--   P:delayed     zset    "<tenant>|<queue>|<entry>" by the ms at which it is due
--
-- Keys of all domains together:
--
--   R:limits      hash    tenant -> "<weight> <cap>"; absent: weight 1 and the default cap
--   R:workers     zset    worker -> ms until which its leases live
--   R:w:WORKER    hash    delivery tag -> "<domain>|<tenant>|<queue>|<entry>": the worker's leases
--   R:held        hash    correlation id -> "<worker>|<delivery tag>"
--   R:waiting     set     correlation ids of what waits in lists and in `delayed`
--   R:dead        list    what nobody could read, newest first: "<queue>|<reason>|<message>"
--
-- Invariants, whatever the history of calls:
--   a message is in exactly one of a list, `delayed`, a worker's hash and `dead`, or it was acked;
--   waiting[T] is the sum of the lengths of T's lists, and total the sum of all waiting;
--   whose message waits or is leased is found in `waiting` or `held` by its correlation id (of two
--   messages with the same one, the first that leaves takes it out);
--   running[T] is the number of T's leases, leased the sum of all, and a lease is given only below
--   the cap;
--   a tenant with work and room is in the ring, or has just been popped from it: then a lease
--   follows, or the repair puts it back.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Virtual times are compared for ever: no digit may be lost on the way into a key.
local function exact(number) return string.format('%.17g', number) end

local function number_at(...) return tonumber(redis.call(...) or '0') end

-- Weight and cap of a tenant; a cap of 0 is none.
local function limits_of(root, domain, tenant)
  local weight, cap = string.match(redis.call('HGET', root .. ':limits', tenant) or '', '^(%S+) (%d+)$')
  return tonumber(weight or '1'), CAPPED[domain] and tonumber(cap or DEFAULT_CAP) or 0
end

local function has_room(root, domain, tenant)
  local _, cap = limits_of(root, domain, tenant)
  return cap == 0 or number_at('HGET', root .. ':' .. domain .. ':running', tenant) < cap
end

-- Into the ring, if the tenant has work and room: now, or when its last turn has been paid.
local function wake(root, domain, tenant)
  local P = root .. ':' .. domain
  if not redis.call('ZSCORE', P .. ':waiting', tenant) then
    redis.call('SREM', P .. ':capped', tenant)
  elseif not has_room(root, domain, tenant) then
    redis.call('SADD', P .. ':capped', tenant)
  else
    redis.call('SREM', P .. ':capped', tenant)
    local start = math.max(number_at('GET', P .. ':clock'), number_at('HGET', P .. ':finish', tenant))
    redis.call('ZADD', P .. ':ring', 'NX', exact(start), tenant)
  end
end

local ENTRY = '^(%d+)|(%d)|([^|]*)|([^|]*)|(.*)$'
local ENTRY_CORRELATION = '^%d+|%d|[^|]*|([^|]*)|'
local ENTRY_MESSAGE = '^%d+|%d|[^|]*|[^|]*|(.*)$'

-- Whether the broker has the message of an entry: so it says who asks by its correlation id.
local function note(root, command, entry)
  local correlation = string.match(entry, ENTRY_CORRELATION)
  if correlation and correlation ~= '' then redis.call(command, root .. ':waiting', correlation) end
end

-- How many wait, how many run, and the seconds that one takes of late.
local function backlog_of(P, tenant)
  return {
    number_at('ZSCORE', P .. ':waiting', tenant),
    number_at('HGET', P .. ':running', tenant),
    redis.call('GET', P .. ':seconds:' .. tenant) or '',
  }
end

-- A waiting message more: at the tail of its queue, or back at the head.
local function push(root, domain, tenant, queue, rank, entry, at_head)
  local P = root .. ':' .. domain
  note(root, 'SADD', entry)
  redis.call(at_head and 'RPUSH' or 'LPUSH', P .. ':m:' .. queue, entry)
  redis.call('ZADD', P .. ':q:' .. tenant, rank, queue)
  redis.call('ZINCRBY', P .. ':waiting', 1, tenant)
  redis.call('INCR', P .. ':total')
end

-- The oldest entry of a queue, which was never counted: the put script did not put it.
local function take_uncounted(P, tenant, queue)
  local entry = redis.call('RPOP', P .. ':m:' .. queue)
  if redis.call('EXISTS', P .. ':m:' .. queue) == 0 then redis.call('ZREM', P .. ':q:' .. tenant, queue) end
  return entry
end

-- A waiting message less: the oldest of its queue. Returns it, and how many the tenant has left.
local function pop(P, tenant, queue)
  local entry = redis.call('RPOP', P .. ':m:' .. queue)
  local left = tonumber(redis.call('ZINCRBY', P .. ':waiting', -1, tenant))
  if left <= 0 then
    redis.call('ZREM', P .. ':waiting', tenant)
    redis.call('DEL', P .. ':q:' .. tenant)
  elseif redis.call('EXISTS', P .. ':m:' .. queue) == 0 then
    redis.call('ZREM', P .. ':q:' .. tenant, queue)
  end
  redis.call('DECR', P .. ':total')
  return entry, left
end

-- A lease less. Returns what was leased, or nothing when the lease is not there any more.
local function release(root, worker, tag)
  local key = root .. ':w:' .. worker
  local lease = redis.call('HGET', key, tag)
  if not lease then return nil end
  redis.call('HDEL', key, tag)
  local domain, tenant, queue, entry = string.match(lease, '^([^|]*)|([^|]*)|([^|]*)|(.*)$')
  local rank, correlation = string.match(entry, '^%d+|(%d)|[^|]*|([^|]*)|')
  if correlation ~= '' and redis.call('HGET', root .. ':held', correlation) == worker .. '|' .. tag then
    redis.call('HDEL', root .. ':held', correlation)
  end
  local running = root .. ':' .. domain .. ':running'
  if redis.call('HINCRBY', running, tenant, -1) <= 0 then redis.call('HDEL', running, tenant) end
  redis.call('DECR', root .. ':' .. domain .. ':leased')
  return {domain = domain, tenant = tenant, queue = queue, rank = rank, entry = entry}
end

-- The tenant that the ring gave is served once: its best message is leased to a worker.
--
-- Best is the smallest put time + rank * ageing: high goes first, and low is not for ever last.
-- The tenant pays 1/weight of virtual time, and rejoins the ring if it has more work and room.
-- The worker's leases live on: it is alive, or it would not ask.
-- Returns queue, delivery tag, message; or nothing.
local function serve(root, domain, tenant, start, worker)
  local P = root .. ':' .. domain
  local clock = number_at('GET', P .. ':clock')
  if start > clock then
    clock = start
    redis.call('SET', P .. ':clock', exact(start))
  end
  local weight, cap = limits_of(root, domain, tenant)
  if cap > 0 and number_at('HGET', P .. ':running', tenant) >= cap then
    redis.call('SADD', P .. ':capped', tenant)
    return nil
  end

  local best, score, tag, correlation, message
  for _, queue in ipairs(redis.call('ZRANGE', P .. ':q:' .. tenant, 0, -1)) do
    local entry = redis.call('LINDEX', P .. ':m:' .. queue, -1)
    local put, rank, its_tag, its_correlation, its_message = string.match(entry or '', ENTRY)
    while entry and not put do
      -- The put script did not put it: nobody can read it.
      redis.call('LPUSH', root .. ':dead', queue .. '|not a message|' .. take_uncounted(P, tenant, queue))
      entry = redis.call('LINDEX', P .. ':m:' .. queue, -1)
      put, rank, its_tag, its_correlation, its_message = string.match(entry or '', ENTRY)
    end
    if entry and (not best or put + rank * worker.ageing < score) then
      best, score = queue, put + rank * worker.ageing
      tag, correlation, message = its_tag, its_correlation, its_message
    end
  end
  if not best then return nil end

  local entry, left = pop(P, tenant, best)
  local running = redis.call('HINCRBY', P .. ':running', tenant, 1)
  redis.call('INCR', P .. ':leased')
  redis.call('HSET', root .. ':w:' .. worker.name, tag, table.concat({domain, tenant, best, entry}, '|'))
  redis.call('ZADD', root .. ':workers', now_ms() + worker.lease_ms, worker.name)
  if correlation ~= '' then
    redis.call('SREM', root .. ':waiting', correlation)
    redis.call('HSET', root .. ':held', correlation, worker.name .. '|' .. tag)
  end
  -- As `wake` does it, with what is known here already.
  local finish = start + 1 / weight
  redis.call('HSET', P .. ':finish', tenant, exact(finish))
  if left > 0 then
    if cap == 0 or running < cap then
      redis.call('ZADD', P .. ':ring', 'NX', exact(math.max(clock, finish)), tenant)
    else
      redis.call('SADD', P .. ':capped', tenant)
    end
  end
  return {best, tag, message}
end
