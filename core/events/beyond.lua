-- Put before the scripts that give seqs: where a log goes on that was lost.
--
-- The floor is what the database and the appender know, but the last events before a loss may be known
-- to nobody: so also above all that could have been given since the epoch at `pace` events a second.
local function beyond(floor, gap, pace)
  local time = redis.call('TIME')
  return math.max(floor + gap, math.floor((time[1] + time[2] / 1000000) * pace))
end

