-- Append one event to a session's log, give it the next seq, and hint it to the session's sockets.
--
-- Invariants:
--   seq is dense: 1, 2, 3 ... in the order of appends, whoever appends;
--   once attempt n of a task was heard, nothing of an attempt below n is appended, and nobody says
--   any more that n is to follow;
--   a task closes its run at most once and itself at most once, and after its run has closed
--   only the task's own closing may follow;
--   an append that is tried again, because its answer was lost, is not done again;
--   hints leave in the order of seq, and none without its event in the log;
--   seq never goes back: a log that was lost, or came back without its end, goes on far above all
--   that may have been given;
--   the running answer is exactly what the log's events say of it: a piece that does not fit
--   to what is kept is not appended;
--   the log of a session that was deleted takes nothing, whoever has not heard of it yet.
--
-- KEYS: the log (stream, ids `seq-0`), the marks (hash: seq, per task its attempt and closings, and
--       `gone` when its session was deleted), the tasks that have closed (list, newest first), the
--       running answer (string: task, space, attempt, newline, text)
-- ARGV: body, task id or "", attempt or "", closes ("", "attempt", "run", "task"), event id, longest log,
--       seconds to live, the group's pub/sub channel, tenant id, session id, floor: a seq that was
--       given in this session, or "" to append only to a log that lives; gap: how far above the floor
--       a lost log goes on at least; how many closed tasks are remembered; offset: how many bytes of the
--       run's answer come before the piece (0 begins it anew), or "" for an event that has none; piece;
--       pace: see `beyond.lua`
-- Returns the seq; 0 when the event was refused; -1 when the answer before the piece is not kept.
local log, marks, closed, answer = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local body, task, attempt, closes, event = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local offset, piece = tonumber(ARGV[14]), ARGV[15]
local head = task .. ' ' .. ARGV[3] .. '\n'

local function seq_of(mark)
  if mark and string.sub(mark, 1, #event) == event then return tonumber(string.sub(mark, #event + 2)) end
end

local known = redis.call('HMGET', marks, 'seq', 'gone')
if known[2] then return 0 end
local floor, tail = tonumber(ARGV[11]), tonumber(known[1])
if not tail then
  if not floor then return 0 end
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if last then floor = math.max(floor, tonumber(string.match(last[1], '%d+'))) end
  redis.call('HSET', marks, 'seq', floor > 0 and beyond(floor, ARGV[12], ARGV[16]) or 0)
elseif floor and floor > 1 and floor > tail then
  -- A floor of 1 only says that the session is no new one.
  redis.call('HSET', marks, 'seq', beyond(floor, ARGV[12], ARGV[16]))
end
if task ~= '' then
  local ended = redis.call('HGET', marks, 'task:' .. task)
  if ended then return seq_of(ended) or 0 end
  local again = attempt and seq_of(redis.call('HGET', marks, 'last:' .. task))
  if again then return again end
  if closes ~= 'task' and redis.call('HEXISTS', marks, 'run:' .. task) == 1 then return 0 end
  if attempt then
    local heard = tonumber(redis.call('HGET', marks, 'attempt:' .. task) or '0')
    if attempt < heard or (attempt == heard and closes == 'attempt') then return 0 end
    if attempt > heard then redis.call('HSET', marks, 'attempt:' .. task, attempt) end
  end
  if offset and offset > 0
    and (redis.call('STRLEN', answer) ~= #head + offset
      or redis.call('GETRANGE', answer, 0, #head - 1) ~= head) then
    return -1
  end
end

local seq = redis.call('HINCRBY', marks, 'seq', 1)
local spelled = string.format('%.0f', seq)  -- Lua itself rounds to 14 digits
redis.call('XADD', log, 'MAXLEN', '~', ARGV[6], spelled .. '-0', 'e', body)
if offset == 0 then
  redis.call('SET', answer, head .. piece)
elseif offset then
  redis.call('APPEND', answer, piece)
end
if closes == 'task' then
  -- Nothing of this task can follow: one mark is enough to say so, as long as anybody may ask.
  redis.call('HSET', marks, 'task:' .. task, event .. ' ' .. spelled)
  redis.call('HDEL', marks, 'attempt:' .. task, 'run:' .. task, 'last:' .. task)
  if redis.call('LPUSH', closed, task) > tonumber(ARGV[13]) then
    redis.call('HDEL', marks, 'task:' .. redis.call('RPOP', closed))
  end
  redis.call('EXPIRE', closed, ARGV[7])
elseif task ~= '' then
  -- Of its worker, who tries again. Others speak in between, and try once.
  if attempt then redis.call('HSET', marks, 'last:' .. task, event .. ' ' .. spelled) end
  if closes == 'run' then redis.call('HSET', marks, 'run:' .. task, '1') end
end
if closes ~= '' and redis.call('GETRANGE', answer, 0, #task) == task .. ' ' then
  redis.call('DEL', answer)  -- else it is already the next run's
end
redis.call('EXPIRE', log, ARGV[7])
redis.call('EXPIRE', marks, ARGV[7])
redis.call('EXPIRE', answer, ARGV[7])
-- As channels-redis would send it: msgpack, on the channel of the group.
redis.call('PUBLISH', ARGV[8], cmsgpack.pack({
  type = 'session.event', tenant_id = ARGV[9], session_id = ARGV[10], seq = seq,
  text = '{"seq":' .. spelled .. ',' .. string.sub(body, 2),
}))
return seq
