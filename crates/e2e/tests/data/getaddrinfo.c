/* What the C library's resolver says of names: a line each, with all addresses in order. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **names)
{
	for (int i = 1; i < count; i++) {
		struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found = NULL;
		int error = getaddrinfo(names[i], NULL, &hints, &found);

		printf("%s", names[i]);
		if (error)
			printf(" %s", error == EAI_NONAME ? "absent" : gai_strerror(error));
		for (struct addrinfo *one = found; one; one = one->ai_next) {
			char text[64] = "";

			getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof(text), NULL, 0,
				    NI_NUMERICHOST);
			printf(" %s", text);
		}
		printf("\n");
		if (found)
			freeaddrinfo(found);
	}
	return 0;
}
