-- Append one event to a session's log, give it the next seq, and hint it to the session's sockets.
--
-- Invariants:
--   seq is dense: 1, 2, 3 ... in the order of appends, whoever appends;
--   once attempt n of a task was heard, nothing of an attempt below n is appended;
--   a task closes its run at most once and itself at most once, and after its run has closed
--   only the task's own closing may follow;
--   an append that is tried again, because its answer was lost, is not done again;
--   hints leave in the order of seq, and none without its event in the log.
--
--   seq never goes back: a log that was lost begins far above all that may have been given.
--
-- KEYS: the log (stream, ids `seq-0`), the marks (hash: seq, and per task its attempt and closings),
--       the tasks that have closed (list, newest first)
-- ARGV: body, task id or "", attempt or "", closes ("", "run", "task"), event id, longest log,
--       seconds to live, the group's pub/sub channel, tenant id, session id, floor: a seq that was
--       given in this session, or "" to append only to a log that lives; gap: how far above the floor
--       a lost log begins; how many closed tasks are remembered
-- Returns the seq, or 0 when the event was refused.
local log, marks, closed = KEYS[1], KEYS[2], KEYS[3]
local body, task, attempt, closes, event = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]

local function seq_of(mark)
  if mark and string.sub(mark, 1, #event) == event then return tonumber(string.sub(mark, #event + 2)) end
end

if redis.call('HEXISTS', marks, 'seq') == 0 then
  local floor = tonumber(ARGV[11])
  if not floor then return 0 end
  redis.call('HSET', marks, 'seq', floor > 0 and floor + ARGV[12] or 0)
end
if task ~= '' then
  local ended = redis.call('HGET', marks, 'task:' .. task)
  if ended then return seq_of(ended) or 0 end
  local again = seq_of(redis.call('HGET', marks, 'last:' .. task))
  if again then return again end
  if closes ~= 'task' and redis.call('HEXISTS', marks, 'run:' .. task) == 1 then return 0 end
  if attempt then
    local heard = tonumber(redis.call('HGET', marks, 'attempt:' .. task) or '0')
    if attempt < heard then return 0 end
    if attempt > heard then redis.call('HSET', marks, 'attempt:' .. task, attempt) end
  end
end

local seq = redis.call('HINCRBY', marks, 'seq', 1)
redis.call('XADD', log, 'MAXLEN', '~', ARGV[6], seq .. '-0', 'e', body)
if closes == 'task' then
  -- Nothing of this task can follow: one mark is enough to say so, as long as anybody may ask.
  redis.call('HSET', marks, 'task:' .. task, event .. ' ' .. seq)
  redis.call('HDEL', marks, 'attempt:' .. task, 'run:' .. task, 'last:' .. task)
  if redis.call('LPUSH', closed, task) > tonumber(ARGV[13]) then
    redis.call('HDEL', marks, 'task:' .. redis.call('RPOP', closed))
  end
  redis.call('EXPIRE', closed, ARGV[7])
elseif task ~= '' then
  redis.call('HSET', marks, 'last:' .. task, event .. ' ' .. seq)
  if closes == 'run' then redis.call('HSET', marks, 'run:' .. task, '1') end
end
redis.call('EXPIRE', log, ARGV[7])
redis.call('EXPIRE', marks, ARGV[7])
-- As channels-redis would send it: msgpack, on the channel of the group.
redis.call('PUBLISH', ARGV[8], cmsgpack.pack({
  type = 'session.event', tenant_id = ARGV[9], session_id = ARGV[10], seq = seq,
  text = '{"seq":' .. seq .. ',' .. string.sub(body, 2),
}))
return seq
