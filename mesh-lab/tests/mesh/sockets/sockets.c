/* What a C program sees of its sockets: see connections() in sockets.rs. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *shown(const struct sockaddr_storage *of, int *port) {
    static char texts[2][INET6_ADDRSTRLEN];
    static int turn;
    char *text = texts[turn ^= 1];
    if (of->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)of;
        *port = ntohs(v4->sin_port);
        return inet_ntop(AF_INET, &v4->sin_addr, text, INET6_ADDRSTRLEN);
    }
    const struct sockaddr_in6 *v6 = (const void *)of;
    *port = ntohs(v6->sin6_port);
    return inet_ntop(AF_INET6, &v6->sin6_addr, text, INET6_ADDRSTRLEN);
}

/* Connects without blocking, as libraries do, and waits. */
static int connect_within(int fd, const struct sockaddr *to, socklen_t length) {
    int error = 0;
    socklen_t size = sizeof error;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (connect(fd, to, length) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return errno;
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    if (poll(&ready, 1, 5000) != 1)
        return ETIMEDOUT;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error;
}

static void converse(int fd) {
    struct sockaddr_storage own, peer;
    socklen_t own_length = sizeof own, peer_length = sizeof peer;
    char heard[200];
    int own_port, peer_port;
    size_t have = 0;
    ssize_t more;
    getsockname(fd, (void *)&own, &own_length);
    getpeername(fd, (void *)&peer, &peer_length);
    const char *from = shown(&own, &own_port), *to = shown(&peer, &peer_port);
    fcntl(fd, F_SETFL, 0);
    if (write(fd, "echo\nhello", 10) != 10 || shutdown(fd, SHUT_WR) != 0) {
        printf("cut off\n");
        return;
    }
    while (have < sizeof heard - 1 && (more = read(fd, heard + have, sizeof heard - 1 - have)) > 0)
        have += more;
    heard[have] = 0;
    printf("from %s to %s %d: %s\n", from, to, peer_port, heard);
}

/* Arguments: name, address and port of each destination. */
int main(int count, char **arguments) {
    for (int next = 1; next + 2 < count; next += 3) {
        struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[next + 2]))};
        struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port};
        int is_v6 = strchr(arguments[next + 1], ':') != NULL;
        int fd = socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
        inet_pton(AF_INET, arguments[next + 1], &v4.sin_addr);
        inet_pton(AF_INET6, arguments[next + 1], &v6.sin6_addr);
        int error = is_v6 ? connect_within(fd, (void *)&v6, sizeof v6) : connect_within(fd, (void *)&v4, sizeof v4);
        printf("%s: ", arguments[next]);
        if (error == 0)
            converse(fd);
        else
            printf("%s\n", error == ECONNREFUSED ? "refused" : strerror(error));
        close(fd);
    }
    return 0;
}
