// What the ambassador's benchmark and its tests call and serve with; C, so that neither is what is measured.
//
//   serve PORT NAME             answers GETs with NAME, keeping connections; what does not begin with "G" is only read
//   load HOST PORT THREADS SECONDS PAUSE   short requests: connect, GET, read to the end, close; counts failures
//   ping HOST PORT COUNT        GETs over one connection, then over new ones; their times
//   bulk HOST PORT STREAMS SECONDS         sends as fast as it can
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
#define MOST 400000

static struct sockaddr_in target;
static double until, pause_seconds;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

// --- serve ---------------------------------------------------------------------------------------------------------

static char answer[256];
static int listener;

static void *one_connection(void *argument)
{
    int fd = (int)(long)argument, one = 1;
    static __thread char buffer[1 << 16];
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;)
        if (buffer[0] == 'G' && write(fd, answer, strlen(answer)) < 0)
            break;
    close(fd);
    return 0;
}

static void *accepting(void *unused)
{
    (void)unused;
    for (;;) {
        int fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
        if (fd >= 0) {
            pthread_t thread;
            pthread_attr_t small;
            pthread_attr_init(&small);
            pthread_attr_setstacksize(&small, 1 << 17);
            pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
            if (pthread_create(&thread, &small, one_connection, (void *)(long)fd))
                close(fd);
        }
    }
    return 0;
}

static int serve(int port, const char *name)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;
    snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(name), name);
    signal(SIGPIPE, SIG_IGN);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&here, sizeof here) || listen(listener, 4096))
        return perror("listen"), 1;
    puts("listening");
    fflush(stdout);
    accepting(0);
    return 0;
}

// --- load ----------------------------------------------------------------------------------------------------------

struct result {
    long good, connect_failed, reset, empty, timed_out, count;
    int why;
    double *times, worst, worst_connect;
};

static void *loading(void *argument)
{
    struct result *r = argument;
    struct timeval patience = {30, 0};
    struct linger reset_at_once = {1, 0};
    char buffer[1024];
    while (now() < until) {
        double began = now(), connected;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), got = 0, failed = 1;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (connect(fd, (void *)&target, sizeof target)) {
            // Reset, not refused: the backend took the connection and died before connect(2) returned.
            errno == ECONNRESET ? r->reset++ : (r->connect_failed++, r->why = errno);
        } else {
            connected = now() - began;
            if (connected > r->worst_connect)
                r->worst_connect = connected;
            if (write(fd, REQUEST, strlen(REQUEST)) < 0) {
                r->reset++;
            } else {
                got = read(fd, buffer, sizeof buffer);
                if (got < 0)
                    errno == EAGAIN ? r->timed_out++ : r->reset++;
                else if (got == 0 || strncmp(buffer, "HTTP/1.1 200", 12))
                    r->empty++;
                else
                    failed = 0;
            }
        }
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset_at_once, sizeof reset_at_once);
        close(fd);
        double took = now() - began;
        if (!failed) {
            r->good++;
            if (r->count < MOST)
                r->times[r->count++] = took;
        }
        if (took > r->worst)
            r->worst = took;
        if (pause_seconds > 0)
            usleep(pause_seconds * 1e6);
    }
    return 0;
}

static int load(int threads, double seconds)
{
    struct result *all = calloc(threads, sizeof *all), sum = {0};
    pthread_t *ids = calloc(threads, sizeof *ids);
    until = now() + seconds;
    for (int n = 0; n < threads; n++) {
        all[n].times = malloc(MOST * sizeof(double));
        pthread_create(&ids[n], 0, loading, &all[n]);
    }
    sum.times = malloc((size_t)threads * MOST * sizeof(double));
    for (int n = 0; n < threads; n++) {
        struct result *r = &all[n];
        pthread_join(ids[n], 0);
        memcpy(sum.times + sum.count, r->times, r->count * sizeof(double));
        sum.count += r->count, sum.good += r->good, sum.connect_failed += r->connect_failed, sum.reset += r->reset;
        sum.empty += r->empty, sum.timed_out += r->timed_out, sum.why = r->why ? r->why : sum.why;
        sum.worst = r->worst > sum.worst ? r->worst : sum.worst;
        sum.worst_connect = r->worst_connect > sum.worst_connect ? r->worst_connect : sum.worst_connect;
    }
    qsort(sum.times, sum.count, sizeof(double), compare);
    printf("{\"good\": %ld, \"connect\": %ld, \"reset\": %ld, \"empty\": %ld, \"timeout\": %ld, \"p50\": %.1f, "
           "\"p99\": %.1f, \"worst\": %.1f, \"worst_connect\": %.1f, \"rate\": %.0f, \"why\": \"%s\"}\n",
           sum.good, sum.connect_failed, sum.reset, sum.empty, sum.timed_out,
           sum.count ? sum.times[sum.count / 2] * 1e6 : 0, sum.count ? sum.times[sum.count * 99 / 100] * 1e6 : 0,
           sum.worst * 1e3, sum.worst_connect * 1e3, sum.good / seconds, sum.why ? strerror(sum.why) : "");
    return 0;
}

// --- ping ----------------------------------------------------------------------------------------------------------

static int connected(void)
{
    struct timeval patience = {5, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (void *)&target, sizeof target))
        perror("connect"), exit(1);
    return fd;
}

static void asked(int fd)
{
    char buffer[1024];
    if (write(fd, REQUEST, strlen(REQUEST)) < 0 || read(fd, buffer, sizeof buffer) <= 0)
        perror("request"), exit(1);
}

static int ping(int count)
{
    double *times = malloc(count * sizeof(double)), began;
    struct linger reset_at_once = {1, 0};
    int fd = connected(), fresh = count / 4;
    for (int n = 0; n < count; n++) {
        began = now();
        asked(fd);
        times[n] = (now() - began) * 1e6;
    }
    qsort(times, count, sizeof(double), compare);
    printf("{\"kept_p50\": %.1f, \"kept_p99\": %.1f, ", times[count / 2], times[count * 99 / 100]);
    close(fd);
    for (int n = 0; n < fresh; n++) {
        began = now();
        fd = connected();
        asked(fd);
        times[n] = (now() - began) * 1e6;
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset_at_once, sizeof reset_at_once);
        close(fd);
    }
    qsort(times, fresh, sizeof(double), compare);
    printf("\"new_p50\": %.1f, \"new_p99\": %.1f}\n", times[fresh / 2], times[fresh * 99 / 100]);
    return 0;
}

// --- bulk ----------------------------------------------------------------------------------------------------------

static void *sending(void *argument)
{
    static char block[1 << 17];
    long *sent = argument;
    int fd = connected();
    memset(block, 'b', sizeof block);
    while (now() < until) {
        ssize_t count = write(fd, block, sizeof block);
        if (count < 0)
            perror("write"), exit(1);
        *sent += count;
    }
    close(fd);
    return 0;
}

static int bulk(int streams, double seconds)
{
    long *sent = calloc(streams, sizeof *sent), sum = 0;
    pthread_t *ids = calloc(streams, sizeof *ids);
    until = now() + seconds;
    for (int n = 0; n < streams; n++)
        pthread_create(&ids[n], 0, sending, &sent[n]);
    for (int n = 0; n < streams; n++)
        pthread_join(ids[n], 0), sum += sent[n];
    printf("{\"gbit\": %.2f}\n", sum * 8 / seconds / 1e9);
    return 0;
}

int main(int count, char **words)
{
    if (count < 4)
        return fputs("serve PORT NAME | load|ping|bulk HOST PORT ...\n", stderr), 64;
    if (!strcmp(words[1], "serve"))
        return serve(atoi(words[2]), words[3]);
    target.sin_family = AF_INET;
    inet_pton(AF_INET, words[2], &target.sin_addr);
    target.sin_port = htons(atoi(words[3]));
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(words[1], "load")) {
        pause_seconds = count > 6 ? atof(words[6]) : 0;
        return load(atoi(words[4]), atof(words[5]));
    }
    if (!strcmp(words[1], "ping"))
        return ping(atoi(words[4]));
    return bulk(atoi(words[4]), atof(words[5]));
}
