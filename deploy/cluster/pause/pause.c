/* The first process of each pod: it holds the pod's namespaces and reaps what its containers leave behind. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal) { _exit(signal == SIGINT || signal == SIGTERM ? 0 : 1); }
static void reap(int signal) { while (waitpid(-1, NULL, WNOHANG) > 0) (void)signal; }

int main(void) {
    if (signal(SIGINT, stop) == SIG_ERR || signal(SIGTERM, stop) == SIG_ERR || signal(SIGCHLD, reap) == SIG_ERR)
        return EXIT_FAILURE;
    for (;;) pause();
}
