/*
 * Loaded into QEMU before its own libraries. Puts the guest's memory, when QEMU maps it, under
 * asynchronous userfaultfd write protection: the kernel then notes which pages were written, without a fault
 * that anybody must answer, and another process reads them with ioctl(PAGEMAP_SCAN). Linux 6.7 or later.
 *
 * Where the kernel has not the feature, or does not allow it, nothing happens: QEMU runs as it would without this,
 * and the other side sees that the memory is not protected.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Headers older than Linux 6.7 have not all of these. */
#define WP_HUGETLBFS_SHMEM (1ULL << 12)
#define WP_UNPOPULATED (1ULL << 13)
#define WP_ASYNC (1ULL << 15)
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* The memory file, and its length in bytes. */
static unsigned long long ram_device, ram_inode, ram_bytes;

/* Before QEMU's own code: reads the variables, and removes them from the environment that QEMU's children inherit. */
__attribute__((constructor)) static void begin(void)
{
    const char *ram = getenv("RETROVISOR_RAM");
    const char *self = getenv("RETROVISOR_PRELOAD");
    const char *preload = getenv("LD_PRELOAD");
    int fd;

    if (ram == NULL || sscanf(ram, "%llu:%llu:%llu", &ram_device, &ram_inode, &ram_bytes) != 3)
        ram_bytes = 0;
    if (self != NULL && preload != NULL && strncmp(preload, self, strlen(self)) == 0) {
        const char *rest = preload + strlen(self);
        if (*rest == ':')
            setenv("LD_PRELOAD", rest + 1, 1);
        else if (*rest == '\0')
            unsetenv("LD_PRELOAD");
        /* This object is mapped by now; its file is needed no more. */
        if (sscanf(self, "/proc/self/fd/%d", &fd) == 1)
            close(fd);
    }
    unsetenv("RETROVISOR_RAM");
    unsetenv("RETROVISOR_PRELOAD");
}

static void protect(void *address, size_t length)
{
    /*
     * User mode only is all that an unprivileged process gets, and enough: asynchronous protection is lifted by
     * the kernel itself, also when the kernel writes. The descriptor stays open as long as QEMU lives.
     */
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api;
    struct uffdio_register range;

    if (fd < 0)
        return;
    memset(&api, 0, sizeof(api));
    api.api = UFFD_API;
    api.features = WP_ASYNC | WP_UNPOPULATED | WP_HUGETLBFS_SHMEM;
    memset(&range, 0, sizeof(range));
    range.range.start = (uintptr_t)address;
    range.range.len = length;
    range.mode = UFFDIO_REGISTER_MODE_WP;
    if (ioctl(fd, UFFDIO_API, &api) != 0 || ioctl(fd, UFFDIO_REGISTER, &range) != 0)
        close(fd);
}

static void *map(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    void *mapped = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);

    if (mapped != MAP_FAILED && ram_bytes != 0 && length == ram_bytes && fd >= 0 && (flags & MAP_SHARED) &&
        (protection & PROT_WRITE)) {
        int error = errno;
        struct stat file;
        if (fstat(fd, &file) == 0 && file.st_dev == ram_device && file.st_ino == ram_inode)
            protect(mapped, length);
        errno = error;
    }
    return mapped;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return map(address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return map(address, length, protection, flags, fd, offset);
}
