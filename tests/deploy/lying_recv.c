/*
 * A kernel that breaks its word, to be loaded into a gateway (LD_PRELOAD): of bytes with "lie!" in them
 * recv(2) says that they are one more than there was room for. No program can go on with that, so in a
 * gateway without a bug it shows what one would do: end this connection and no other.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>

ssize_t recv(int socket, void *buffer, size_t length, int flags) {
  ssize_t (*honest)(int, void *, size_t, int);
  *(void **)&honest = dlsym(RTLD_NEXT, "recv");
  ssize_t received = honest(socket, buffer, length, flags);
  if (received > 0 && memmem(buffer, received, "lie!", 4)) return length + 1;
  return received;
}
