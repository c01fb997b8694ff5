#!/bin/sh
# A CGI program that tells what it believes: every variable of its environment, and its body's digest.
digest=$(sha256sum)
printf 'Content-Type: text/plain\r\n\r\n'
[ "$REQUEST_METHOD" = HEAD ] && exit
env
printf 'BODY_SHA256=%s\n' "${digest%% *}"
