/* drain: asks the payload to finish what it is doing, before it is stopped. cc -O2 -o drain drain.c
 *
 *   [[chain]]                      # after the container: its down comes before the container's
 *   hook = "exec:/etc/podrun/hooks.d/drain"
 *   port = 8080
 *   path = "/drain"                # gets a POST; the answer comes when all is done
 *   patience = 10                  # seconds
 *
 * The request is made from inside the pod's network namespace. Nobody there means nobody to wait for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static const char *value(const char *name, const char *otherwise)
{
    const char *found = getenv(name);
    return found && *found ? found : otherwise;
}

static int fail(int code, const char *what)
{
    printf("{\"error\": \"%s\"}\n", what);
    return code;
}

/* podrun's network step names the namespace like the pod; without one the pod is in the host's. */
static void enter_the_pods_network(void)
{
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", value("PODRUN_TAG", ""));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && setns(fd, CLONE_NEWNET) < 0)
        perror("setns");
}

static int drain(void)
{
    int port = atoi(value("PODRUN_OPTION_PORT", "80")), patience = atoi(value("PODRUN_OPTION_PATIENCE", "10"));
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct timeval limit = {.tv_sec = patience};
    char request[512], answer[512];

    enter_the_pods_network();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(76, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&there, sizeof there) < 0) {
        fprintf(stderr, "nobody listens on port %d: %s\n", port, strerror(errno));
        return 0;
    }
    int length = snprintf(request, sizeof request,
                          "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                          value("PODRUN_OPTION_PATH", "/drain"));
    if (length >= (int)sizeof request)
        return fail(78, "path is too long");
    if (send(fd, request, length, MSG_NOSIGNAL) != length)
        return 0;
    ssize_t got = recv(fd, answer, sizeof answer - 1, 0);
    if (got < 0)
        fprintf(stderr, "not drained within %d s: it is stopped all the same\n", patience);
    else
        fprintf(stderr, "drained: %.*s\n", (int)strcspn((answer[got] = 0, answer), "\r\n"), answer);
    return 0;
}

int main(void)
{
    const char *verb = value("PODRUN_VERB", "");
    if (strcmp(value("PODRUN_HOOK_VERSION", ""), "1"))
        return fail(78, "drain knows version 1 of the contract only");
    if (!strcmp(verb, "up") && !getenv("PODRUN_OPTION_PORT"))
        return fail(78, "port is missing");
    return strcmp(verb, "down") ? 0 : drain();
}
