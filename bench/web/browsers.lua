-- Each thread of wrk is one browser: one connection, one cookie, one worker's port.
-- BENCH_BROWSERS holds a line for each: port, a blank, the Cookie header.

local browsers = {}
for port, cookie in os.getenv("BENCH_BROWSERS"):gmatch("(%d+) ([^\n]*)\n") do
  browsers[#browsers + 1] = {port = port, cookie = cookie}
end
local started = 0

function setup(thread)
  started = started + 1
  thread.addr = wrk.lookup("127.0.0.1", browsers[started].port)[1]
  thread:set("cookie", browsers[started].cookie)
end

function init(_arguments)
  ask = wrk.format("GET", "/", {["Cookie"] = cookie, ["Host"] = "127.0.0.1"})
end

function request()
  return ask
end

function done(summary, latency, _requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"answered": %d, "failed": %d, "seconds": %f, "p99": %f}\n',
    summary.requests - errors.status, failed, summary.duration / 1e6, latency:percentile(99) / 1e6
  ))
end
