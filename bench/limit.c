/*
 * The limit: what one connection to this server can do, with no FUSE, no loop device and no Python in the way.
 *
 * Reads or writes blocks of a file on an NFSv3 server through libnfs's asynchronous API, a fixed number of them
 * outstanding, for some seconds, or once through the file if SECONDS is 0. For `write` the file is opened O_SYNC,
 * so that each WRITE asks for FILE_SYNC: the same promise that a page of swap needs. `unstable` writes as ordinary
 * files are written: UNSTABLE, and one COMMIT at the end, which is part of its time.
 *
 *     limit URL read|write|unstable random|sequential BLOCK_BYTES DEPTH SECONDS FILE_BYTES
 *
 * The file must exist, and hold FILE_BYTES if it is to be read. Prints one JSON object.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include <nfsc/libnfs.h>

struct run {
	struct nfs_context *nfs;
	struct nfsfh *file;
	bool write;
	bool random;
	bool once;
	uint64_t block_bytes;
	uint64_t blocks;	/* in the file */
	uint64_t next;		/* sequential: the block to come */
	uint64_t random_state;
	double end;
	unsigned outstanding;
	const char *failure;

	uint32_t *latency_ns;
	size_t done;
	size_t capacity;
};

struct call {
	struct run *run;
	struct timespec start;
	char *buffer;
};

static double seconds_of(struct timespec time)
{
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static struct timespec now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time;
}

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016 */
static uint64_t draw(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * UINT64_C(0x2545F4914F6CDD1D);
}

static void issue(struct call *call);

static void record(struct run *run, struct timespec start, struct timespec end)
{
	if (run->done == run->capacity) {
		run->capacity = run->capacity ? 2 * run->capacity : 1 << 16;
		run->latency_ns = realloc(run->latency_ns, run->capacity * sizeof(*run->latency_ns));
		if (!run->latency_ns)
			abort();
	}
	run->latency_ns[run->done++] = (uint32_t)((end.tv_sec - start.tv_sec) * 1000000000L + end.tv_nsec -
						  start.tv_nsec);
}

static void finished(int result, struct nfs_context *nfs, void *data, void *private_data)
{
	struct call *call = private_data;
	struct run *run = call->run;
	struct timespec end = now();

	(void)nfs;
	run->outstanding--;
	if (result < 0) {
		run->failure = data ? strdup(data) : "I/O error";
		return;
	}
	if ((uint64_t)result != run->block_bytes) {
		run->failure = "short transfer";
		return;
	}
	record(run, call->start, end);
	if (run->failure)
		return;
	if (run->once ? run->next < run->blocks : seconds_of(end) < run->end)
		issue(call);
}

static void issue(struct call *call)
{
	struct run *run = call->run;
	uint64_t block = run->random ? draw(&run->random_state) % run->blocks : run->next++ % run->blocks;
	uint64_t offset = block * run->block_bytes;
	int error;

	call->start = now();
#ifdef LIBNFS_API_V2
	error = run->write ? nfs_pwrite_async(run->nfs, run->file, call->buffer, run->block_bytes, offset, finished,
					      call)
			   : nfs_pread_async(run->nfs, run->file, call->buffer, run->block_bytes, offset, finished,
					     call);
#else
	error = run->write ? nfs_pwrite_async(run->nfs, run->file, offset, run->block_bytes, call->buffer, finished,
					      call)
			   : nfs_pread_async(run->nfs, run->file, offset, run->block_bytes, finished, call);
#endif
	if (error)
		run->failure = "the call could not be queued";
	else
		run->outstanding++;
}

static int serve(struct run *run)
{
	while (run->outstanding) {
		struct pollfd pollfd = { .fd = nfs_get_fd(run->nfs), .events = (short)nfs_which_events(run->nfs) };

		if (poll(&pollfd, 1, 10000) <= 0) {
			run->failure = "the server does not answer";
			return -1;
		}
		if (nfs_service(run->nfs, pollfd.revents) < 0) {
			run->failure = nfs_get_error(run->nfs);
			return -1;
		}
	}
	return run->failure ? -1 : 0;
}

static int ascending(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

static double percentile_us(const struct run *run, unsigned percent)
{
	size_t rank = (run->done * percent + 99) / 100;

	return run->latency_ns[rank ? rank - 1 : 0] / 1e3;
}

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "limit: %s: %s\n", what, why ? why : "failed");
	return 1;
}

int main(int argc, char **argv)
{
	struct run run = { .random_state = UINT64_C(0x9E3779B97F4A7C15) };
	bool unstable;
	unsigned depth;
	double seconds;
	struct nfs_url *url;
	struct call *calls;
	struct timespec start;

	if (argc != 8) {
		fprintf(stderr, "usage: limit URL read|write|unstable random|sequential BLOCK_BYTES DEPTH SECONDS FILE_BYTES\n");
		return 2;
	}
	unstable = !strcmp(argv[2], "unstable");
	run.write = unstable || !strcmp(argv[2], "write");
	run.random = !strcmp(argv[3], "random");
	run.block_bytes = strtoull(argv[4], NULL, 10);
	depth = (unsigned)strtoul(argv[5], NULL, 10);
	seconds = strtod(argv[6], NULL);
	run.once = seconds == 0;
	run.blocks = run.block_bytes ? strtoull(argv[7], NULL, 10) / run.block_bytes : 0;
	if (!run.blocks || !depth)
		return fail(argv[7], "holds no block");

	run.nfs = nfs_init_context();
	if (!run.nfs)
		return fail(argv[1], "no memory");
	url = nfs_parse_url_full(run.nfs, argv[1]);
	if (!url)
		return fail(argv[1], nfs_get_error(run.nfs));
	if (nfs_mount(run.nfs, url->server, url->path))
		return fail(argv[1], nfs_get_error(run.nfs));
	if (nfs_open(run.nfs, url->file, unstable ? O_RDWR : O_RDWR | O_SYNC, &run.file))
		return fail(argv[1], nfs_get_error(run.nfs));
	if (run.block_bytes > (run.write ? nfs_get_writemax(run.nfs) : nfs_get_readmax(run.nfs)))
		return fail(argv[4], "above the server's transfer size");

	calls = calloc(depth, sizeof(*calls));
	if (!calls)
		return fail(argv[5], "no memory");
	for (unsigned i = 0; i < depth; i++) {
		calls[i].run = &run;
		calls[i].buffer = malloc(run.block_bytes);
		if (!calls[i].buffer)
			return fail(argv[5], "no memory");
		for (uint64_t at = 0; at + 8 <= run.block_bytes; at += 8) {
			uint64_t word = draw(&run.random_state);

			memcpy(calls[i].buffer + at, &word, 8);
		}
	}
	start = now();
	run.end = seconds_of(start) + seconds;
	for (unsigned i = 0; i < depth && (!run.once || i < run.blocks); i++)
		issue(&calls[i]);
	if (serve(&run) || !run.done)
		return fail(argv[1], run.failure);
	if (unstable && nfs_fsync(run.nfs, run.file))
		return fail(argv[1], nfs_get_error(run.nfs));
	seconds = seconds_of(now()) - seconds_of(start);

	qsort(run.latency_ns, run.done, sizeof(*run.latency_ns), ascending);
	printf("{\"operations\": %zu, \"seconds\": %.6f, \"iops\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
	       run.done, seconds, (double)run.done / seconds, percentile_us(&run, 50), percentile_us(&run, 99));
	nfs_close(run.nfs, run.file);
	nfs_destroy_context(run.nfs);
	return 0;
}
