-- The sessions of one principal: a sorted set of handles by the moment they end at the latest.
-- Entries past that moment are pruned whenever one is added or listed. One member more, '', counts
-- in its score, downwards, how often all of them were revoked: a session that joins asks for that
-- epoch before its commit and confirms it afterwards, so no revocation is slipped past.
--
-- KEYS[1]   the principal's index
-- ARGV[1]   'add', 'drop', 'list' or 'revoke'
-- ARGV[2]   the handle of a session; empty for 'list' and 'revoke'
-- ARGV[3]   ms: how long the session lasts at most ('add'), or the epoch is kept ('revoke');
--           the score with which it was listed ('drop')
-- ARGV[4]   the epoch that must still be, or empty ('add')
--
-- Returns   {code, now, list}
--   OK         done; 'add': {epoch}; 'list', 'revoke': handle and score in turn; 'drop': nothing,
--              and nothing is dropped that was added again since it was listed
--   GONE       'add': another epoch has begun, and nothing was added

local OK, GONE = 1, 4

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local index, verb, handle = KEYS[1], ARGV[1], ARGV[2]

local function keep_for(ms)
  if redis.call('PTTL', index) < tonumber(ms) then redis.call('PEXPIRE', index, ms) end
end

if verb == 'drop' then
  if redis.call('ZSCORE', index, handle) == ARGV[3] then redis.call('ZREM', index, handle) end
  return {OK, now, {}}
end
redis.call('ZREMRANGEBYSCORE', index, 0, string.format('%.0f', now))
if verb == 'add' then
  local epoch = tostring(redis.call('ZSCORE', index, '') or 0)
  if ARGV[4] ~= '' and ARGV[4] ~= epoch then return {GONE, now, {}} end
  local known = tonumber(redis.call('ZSCORE', index, handle) or 0)
  redis.call('ZADD', index, string.format('%.0f', math.max(now + ARGV[3], known + 1)), handle)
  keep_for(ARGV[3])
  return {OK, now, {epoch}}
end
if verb == 'revoke' then
  redis.call('ZINCRBY', index, -1, '')
  keep_for(ARGV[3])
end
return {OK, now, redis.call('ZRANGEBYSCORE', index, 0, '+inf', 'WITHSCORES')}
