/*
 * Starts a QEMU that was unpacked into the cache and does not find its firmware and modules by itself. QEMU, SHARE and MODULES are
 * defined by tools.sh.
 *
 * It is linked statically: what LD_PRELOAD names is for QEMU, and must not be loaded, or take its orders, before.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static const char *const own[] = {QEMU, "-L", SHARE "/qemu", "-L", SHARE "/seabios"};
    const size_t count = sizeof(own) / sizeof(own[0]);
    const size_t given = argc > 0 ? (size_t)argc - 1 : 0;
    char **arguments = calloc(count + given + 1, sizeof(*arguments));

    if (arguments == NULL)
        return 127;
    memcpy(arguments, own, sizeof(own));
    if (given > 0)
        memcpy(arguments + count, argv + 1, given * sizeof(*arguments));
    setenv("QEMU_MODULE_DIR", MODULES, 0);
    execv(QEMU, arguments);
    perror(QEMU);
    return 127;
}
