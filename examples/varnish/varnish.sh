#!/bin/sh
# Varnish with a director of all backends in a file, ADDRESS PORT WEIGHT on a line; loads them anew when the file changes.
set -eu
list=$1
work=/tmp/varnish

configuration() {
    echo 'vcl 4.1; import directors; backend default none;'
    added= n=0
    while read -r address port weight; do
        n=$((n + 1))
        echo "backend b$n { .host = \"$address\"; .port = \"$port\"; .connect_timeout = 1s; }"
        added="$added all.add_backend(b$n, $weight);"
    done
    echo "sub vcl_init { new all = directors.random(); $added }"
    echo 'sub vcl_recv { set req.backend_hint = all.backend(); }'
    # What is too old is better than nothing while there is no backend.
    echo 'sub vcl_backend_response { set beresp.grace = 1h; }'
}

cp "$list" /tmp/list
configuration </tmp/list >/tmp/0.vcl
varnishd -F -j none -n $work -a :80 -f /tmp/0.vcl -s malloc,16m &
trap 'kill $!; wait' TERM INT

version=0
while kill -0 $! 2>/dev/null; do
    if ! cmp -s "$list" /tmp/list; then
        cp "$list" /tmp/list
        version=$((version + 1))
        configuration </tmp/list >/tmp/$version.vcl
        # Compiling takes a moment, in which Varnish goes on as it was.
        if varnishadm -n $work vcl.load v$version /tmp/$version.vcl >/dev/null; then
            varnishadm -n $work vcl.use v$version >/dev/null
        fi
        rm /tmp/$version.vcl
    fi
    sleep 0.1
done
