#!/bin/sh
# The demo: start examples/hello, fetch its page, look around, stop it, show that nothing is left.
# Usage: demo.sh PODRUN (the command)
set -eu
podrun=$(realpath "$1")
cd "$(dirname "$0")"
export HELLO_WWW="$PWD/www"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

objects() { # everything that a pod is made of
    ip netns list | grep podrun-hello || true
    ip -o link show type veth | grep 'alias podrun-hello' || true
    findmnt -rno TARGET | grep -E 'netns/podrun-hello|pods/hello' || true
    find /run/podrun/pods /run/podrun/registry /var/lib/podrun/pods -mindepth 1 2>/dev/null | grep hello || true
    pgrep -af 'http.server --directory /srv/www' || true
}

"$podrun" down hello
before=$(objects)

show "$podrun" plan hello.toml
show "$podrun" up -d hello.toml
show "$podrun" trace hello
show "$podrun" ps
address=$("$podrun" inspect hello | sed -n 's|.*"\([0-9.]*\)/[0-9]*".*|\1|p' | head -n 1)
show curl -sS --max-time 5 "http://$address/"
printf '\nno process of podrun is left, the container is its own:\n'
pgrep -af 'podrun.* hello' || echo '(none)'
pid=$("$podrun" inspect hello | sed -n 's|.*"pid": \([0-9]*\).*|\1|p' | head -n 1)
show ps -o pid,ppid,user,args -p "$pid"
show ip netns exec podrun-hello ip -brief address
show "$podrun" exec hello id -u
show "$podrun" down hello

sleep 1 # the kernel takes a moment to drop the veth of a network namespace
after=$(objects)
if [ "$before" = "$after" ]; then
    printf '\nnothing is left.\n'
else
    printf '\nleft behind:\n%s\n' "$after"
    exit 1
fi
