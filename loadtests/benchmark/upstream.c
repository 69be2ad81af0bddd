/* The upstream of the bench: one thread, epoll, canned answers. It must cost far less than any proxy before it.
 *
 * usage: upstream PORT
 * GET /.../SIZE answers SIZE bytes of 'x' (the number after the last slash, at most 1 MiB); a request body (content-length or
 * chunked) is read and thrown away. Knows just enough HTTP/1.1 for the proxies of the bench. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

enum { IN = 65536, BODY = 1 << 20 };

struct connection {
    int fd;
    size_t have;       /* bytes in `in` */
    size_t body_left;  /* request body still to throw away */
    int chunked;       /* the body is chunked: thrown away until its last chunk */
    size_t head_length, head_sent, answer_length, answer_sent; /* the answer under way */
    size_t pending;    /* size to answer once the body has been read */
    int answering;
    char head[128];
    char in[IN];
};

static char body[BODY];

static void fail(const char *what) { perror(what); exit(1); }

static void start_answer(struct connection *c, size_t size) {
    c->head_length = (size_t)snprintf(c->head, sizeof c->head,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %zu\r\n\r\n", size);
    c->head_sent = c->answer_sent = 0;
    c->answer_length = size;
    c->answering = 1;
}

/* 1 when the answer is out, 0 when the socket is full, -1 when the peer is gone. */
static int send_answer(struct connection *c) {
    while (c->head_sent < c->head_length || c->answer_sent < c->answer_length) {
        struct iovec parts[2] = {{c->head + c->head_sent, c->head_length - c->head_sent},
                                 {body + c->answer_sent, c->answer_length - c->answer_sent}};
        ssize_t n = writev(c->fd, parts, 2);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        size_t head = c->head_length - c->head_sent;
        if ((size_t)n < head) { c->head_sent += (size_t)n; continue; }
        c->head_sent = c->head_length;
        c->answer_sent += (size_t)n - head;
    }
    c->answering = 0;
    return 1;
}

static void drop(struct connection *c, size_t n) {
    memmove(c->in, c->in + n, c->have - n);
    c->have -= n;
}

/* Takes one chunk header or its data away; 1 when the last chunk is gone, 0 when more bytes are needed, 2 to go on. */
static int take_chunk(struct connection *c) {
    if (c->body_left) {
        size_t n = c->have < c->body_left ? c->have : c->body_left;
        drop(c, n);
        c->body_left -= n;
        return c->body_left ? 0 : 2;
    }
    char *end = memmem(c->in, c->have, "\r\n", 2);
    if (!end) return 0;
    size_t size = strtoul(c->in, NULL, 16);
    if (size == 0) {
        if (c->have < (size_t)(end - c->in) + 4) return 0;
        drop(c, (size_t)(end - c->in) + 4); /* no trailers in the bench */
        c->chunked = 0;
        return 1;
    }
    drop(c, (size_t)(end - c->in) + 2);
    c->body_left = size + 2;
    return 2;
}

/* 0 to wait for the peer, -1 when the connection is over. */
static int process(struct connection *c) {
    for (;;) {
        if (c->answering) {
            int sent = send_answer(c);
            if (sent <= 0) return sent;
        }
        if (c->chunked) {
            int taken = take_chunk(c);
            if (taken == 0) return 0;
            if (taken == 1) start_answer(c, c->pending);
            continue;
        }
        if (c->body_left) {
            size_t n = c->have < c->body_left ? c->have : c->body_left;
            drop(c, n);
            c->body_left -= n;
            if (c->body_left) return 0;
            start_answer(c, c->pending);
            continue;
        }
        char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
        if (!end) return c->have == IN ? -1 : 0;
        *end = 0;
        char *space = strchr(c->in, ' ');
        if (!space) return -1;
        char *path_end = strchr(space + 1, ' '), *slash = path_end;
        if (!path_end) return -1;
        while (slash > space && *slash != '/') slash--;
        size_t size = strtoul(slash + 1, NULL, 10);
        c->pending = size > BODY ? BODY : size;
        char *length = strcasestr(path_end, "\r\ncontent-length:");
        c->chunked = strcasestr(path_end, "\r\ntransfer-encoding: chunked") != NULL;
        c->body_left = length ? strtoul(length + 17, NULL, 10) : 0;
        drop(c, (size_t)(end - c->in) + 4);
        if (!c->chunked && !c->body_left) start_answer(c, c->pending);
    }
}

/* One readable or writable event: 0 to go on, -1 when the connection is over. */
static int serve(struct connection *c, unsigned ready) {
    if (ready & EPOLLIN) {
        ssize_t n = read(c->fd, c->in + c->have, IN - c->have);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
        if (n > 0) c->have += (size_t)n;
    }
    return process(c);
}

/* A connection whose answer is stuck waits for room alone, every other one for bytes. */
static void watch(int poll, int how, struct connection *c) {
    struct epoll_event event = {.events = c->answering ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poll, how, c->fd, &event)) fail("epoll_ctl");
}

int main(int argc, char **argv) {
    if (argc != 2) { fprintf(stderr, "usage: upstream PORT\n"); return 2; }
    memset(body, 'x', sizeof body);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) fail("bind");
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    if (epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event)) fail("epoll_ctl");
    for (;;) {
        int n = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c) {
                int blocked = c->answering;
                if (serve(c, events[i].events) < 0) { close(c->fd); free(c); continue; }
                if (c->answering != blocked) watch(poll, EPOLL_CTL_MOD, c);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                c = calloc(1, sizeof *c);
                if (!c) fail("calloc");
                c->fd = fd;
                watch(poll, EPOLL_CTL_ADD, c);
            }
        }
    }
}
