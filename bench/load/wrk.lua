-- Builds each request when it is sent: one of 10,000 paths, a distinct query, an unused traceparent, one of many tokens.
-- wrk ... -s wrk.lua URL -- TOKENS PATHS SEED ORDER KIND
--   ORDER: "random", or the number of the token to begin with, to go through them in turn
--   KIND: "keep" for connections that are kept alive, "close" for a connection for each request, "call" for the calls
--     with which nginx asks about the requests, on connections that are kept alive
-- Ends with one line of JSON on standard output.

local tokens, paths = {}, {}
local count, token_count, path_count = 0, 0, 0
local trace, host, in_turn, ending, calls

local format, random = string.format, math.random

local function read(file, into)
  for line in io.lines(file) do into[#into + 1] = line end
  return #into
end

function init(args)
  token_count = read(args[1], tokens)
  path_count = read(args[2], paths)
  math.randomseed(tonumber(args[3]))
  trace = format("%08x%08x", random(0, 0x7fffffff), random(0, 0x7fffffff))
  in_turn = tonumber(args[4])  -- nil for "random"
  host = wrk.headers["Host"]
  calls = args[5] == "call"
  ending = (args[5] == "close" and "\r\nConnection: close" or "") .. "\r\n\r\n"
end

function request()
  count = count + 1
  local token = in_turn and tokens[(in_turn + count - 1) % token_count + 1] or tokens[random(token_count)]
  local serial = format("%016x", count)
  local target = paths[random(path_count)] .. "?page=" .. count % 97 .. "&limit=" .. 10 + count % 50 .. "&cursor=" .. serial
  local head = "GET " .. target .. " HTTP/1.1\r\nHost: " .. host
  if calls then
    head = "HEAD /nginx HTTP/1.1\r\nX-Original-Method: GET\r\nX-Original-URI: " .. target .. "\r\nHost: " .. host
      .. "\r\nX-Forwarded-Host: " .. host .. "\r\nX-Forwarded-Proto: http\r\nX-Forwarded-For: 127.0.0.1"
  end
  return head .. "\r\nUser-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\nAccept: application/json\r\nAuthorization: Bearer "
    .. token .. "\r\ntraceparent: 00-" .. trace .. serial .. "-" .. serial .. "-01" .. ending
end

function done(summary, latency)
  local e = summary.errors
  print(format(
    '{"requests":%d,"bytes":%d,"duration_us":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,"p50_us":%d,"p99_us":%d}',
    summary.requests, summary.bytes, summary.duration, e.connect, e.read, e.write, e.timeout, e.status,
    latency:percentile(50), latency:percentile(99)))
end
