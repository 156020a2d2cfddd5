"""The cffi binding of libnfs's raw NFSv3 interface, compiled against the installed header.

Run by setup.py when the package is installed. libnfs 4 and 5 name the
calls rpc_nfs3_*_async and return int; libnfs 6 and later name them rpc_nfs3_*_task, return a pointer, and
receive READ data into the caller's buffer. The shims below hide that: every `call_*` returns 0 when the call
is queued, and its reply arrives at the one callback `libnfs_reply` with the caller's key.

Up to 6.0.2 libnfs checks lengths in a reply by a sum that overflows, so that a length of 2 GiB moves its
position out of the buffer and the process dies. The guards below stand in front of those decoders: libnfs
calls its exported functions through the linkage table, and the dynamic linker finds a definition in the
object that was opened (this one) before that in its dependency.
"""

from cffi import FFI  # type: ignore[import-untyped]

PROCEDURES = (
    ("getattr", "GETATTR3args"),
    ("setattr", "SETATTR3args"),
    ("lookup", "LOOKUP3args"),
    ("access", "ACCESS3args"),
    ("readlink", "READLINK3args"),
    ("write", "WRITE3args"),
    ("create", "CREATE3args"),
    ("mkdir", "MKDIR3args"),
    ("symlink", "SYMLINK3args"),
    ("mknod", "MKNOD3args"),
    ("remove", "REMOVE3args"),
    ("rmdir", "RMDIR3args"),
    ("rename", "RENAME3args"),
    ("link", "LINK3args"),
    ("readdir", "READDIR3args"),
    ("readdirplus", "READDIRPLUS3args"),
    ("fsstat", "FSSTAT3args"),
    ("fsinfo", "FSINFO3args"),
    ("pathconf", "PATHCONF3args"),
    ("commit", "COMMIT3args"),
)

TYPES = """
typedef int... ftype3;
typedef int... nfsstat3;
typedef int... mountstat3;
typedef int... stable_how;
typedef int... time_how;
typedef int... createmode3;

typedef struct { struct { uint32_t data_len; char *data_val; } data; } nfs_fh3;
typedef struct { nfs_fh3 dir; char *name; } diropargs3;
typedef struct { uint32_t specdata1; uint32_t specdata2; } specdata3;
typedef struct { uint32_t seconds; uint32_t nseconds; } nfstime3;
typedef struct {
    ftype3 type; uint32_t mode; uint32_t nlink; uint32_t uid; uint32_t gid; uint64_t size; uint64_t used;
    specdata3 rdev; uint64_t fsid; uint64_t fileid; nfstime3 atime; nfstime3 mtime; nfstime3 ctime;
} fattr3;
typedef struct { uint32_t attributes_follow; union { fattr3 attributes; } post_op_attr_u; } post_op_attr;
typedef struct { uint64_t size; nfstime3 mtime; nfstime3 ctime; } wcc_attr;
typedef struct { uint32_t attributes_follow; union { wcc_attr attributes; } pre_op_attr_u; } pre_op_attr;
typedef struct { pre_op_attr before; post_op_attr after; } wcc_data;
typedef struct { uint32_t handle_follows; union { nfs_fh3 handle; } post_op_fh3_u; } post_op_fh3;

typedef struct {
    struct { uint32_t set_it; union { uint32_t mode; } set_mode3_u; } mode;
    struct { uint32_t set_it; union { uint32_t uid; } set_uid3_u; } uid;
    struct { uint32_t set_it; union { uint32_t gid; } set_gid3_u; } gid;
    struct { uint32_t set_it; union { uint64_t size; } set_size3_u; } size;
    struct { time_how set_it; union { nfstime3 atime; } set_atime_u; } atime;
    struct { time_how set_it; union { nfstime3 mtime; } set_mtime_u; } mtime;
} sattr3;

typedef struct { nfs_fh3 object; } GETATTR3args;
typedef struct { fattr3 obj_attributes; } GETATTR3resok;
typedef struct { nfsstat3 status; union { GETATTR3resok resok; } GETATTR3res_u; } GETATTR3res;

typedef struct { nfs_fh3 object; sattr3 new_attributes; ...; } SETATTR3args;
typedef struct { wcc_data obj_wcc; } SETATTR3resok;
typedef struct { nfsstat3 status; union { SETATTR3resok resok; } SETATTR3res_u; } SETATTR3res;

typedef struct { diropargs3 what; } LOOKUP3args;
typedef struct { nfs_fh3 object; post_op_attr obj_attributes; post_op_attr dir_attributes; } LOOKUP3resok;
typedef struct { nfsstat3 status; union { LOOKUP3resok resok; } LOOKUP3res_u; } LOOKUP3res;

typedef struct { nfs_fh3 object; uint32_t access; } ACCESS3args;
typedef struct { post_op_attr obj_attributes; uint32_t access; } ACCESS3resok;
typedef struct { nfsstat3 status; union { ACCESS3resok resok; } ACCESS3res_u; } ACCESS3res;

typedef struct { nfs_fh3 symlink; } READLINK3args;
typedef struct { post_op_attr symlink_attributes; char *data; } READLINK3resok;
typedef struct { nfsstat3 status; union { READLINK3resok resok; } READLINK3res_u; } READLINK3res;

typedef struct { nfs_fh3 file; uint64_t offset; uint32_t count; } READ3args;
typedef struct {
    post_op_attr file_attributes; uint32_t count; uint32_t eof;
    struct { uint32_t data_len; char *data_val; } data;
} READ3resok;
typedef struct { nfsstat3 status; union { READ3resok resok; } READ3res_u; } READ3res;

typedef struct {
    nfs_fh3 file; uint64_t offset; uint32_t count; stable_how stable;
    struct { uint32_t data_len; char *data_val; } data;
} WRITE3args;
typedef struct { wcc_data file_wcc; uint32_t count; stable_how committed; char verf[8]; } WRITE3resok;
typedef struct { nfsstat3 status; union { WRITE3resok resok; } WRITE3res_u; } WRITE3res;

typedef struct {
    createmode3 mode; union { sattr3 obj_attributes; sattr3 g_obj_attributes; char verf[8]; } createhow3_u;
} createhow3;
typedef struct { diropargs3 where; createhow3 how; } CREATE3args;
typedef struct { post_op_fh3 obj; post_op_attr obj_attributes; wcc_data dir_wcc; } CREATE3resok;
typedef struct { nfsstat3 status; union { CREATE3resok resok; } CREATE3res_u; } CREATE3res;

typedef struct { diropargs3 where; sattr3 attributes; } MKDIR3args;
typedef struct { post_op_fh3 obj; post_op_attr obj_attributes; wcc_data dir_wcc; } MKDIR3resok;
typedef struct { nfsstat3 status; union { MKDIR3resok resok; } MKDIR3res_u; } MKDIR3res;

typedef struct { sattr3 symlink_attributes; char *symlink_data; } symlinkdata3;
typedef struct { diropargs3 where; symlinkdata3 symlink; } SYMLINK3args;
typedef struct { post_op_fh3 obj; post_op_attr obj_attributes; wcc_data dir_wcc; } SYMLINK3resok;
typedef struct { nfsstat3 status; union { SYMLINK3resok resok; } SYMLINK3res_u; } SYMLINK3res;

typedef struct { sattr3 dev_attributes; specdata3 spec; } devicedata3;
typedef struct {
    ftype3 type;
    union {
        devicedata3 chr_device; devicedata3 blk_device; sattr3 sock_attributes; sattr3 pipe_attributes;
    } mknoddata3_u;
} mknoddata3;
typedef struct { diropargs3 where; mknoddata3 what; } MKNOD3args;
typedef struct { post_op_fh3 obj; post_op_attr obj_attributes; wcc_data dir_wcc; } MKNOD3resok;
typedef struct { nfsstat3 status; union { MKNOD3resok resok; } MKNOD3res_u; } MKNOD3res;

typedef struct { diropargs3 object; } REMOVE3args;
typedef struct { nfsstat3 status; ...; } REMOVE3res;
typedef struct { diropargs3 object; } RMDIR3args;
typedef struct { nfsstat3 status; ...; } RMDIR3res;
typedef struct { diropargs3 from; diropargs3 to; } RENAME3args;
typedef struct { nfsstat3 status; ...; } RENAME3res;

typedef struct { nfs_fh3 file; diropargs3 link; } LINK3args;
typedef struct { post_op_attr file_attributes; wcc_data linkdir_wcc; } LINK3resok;
typedef struct { nfsstat3 status; union { LINK3resok resok; } LINK3res_u; } LINK3res;

typedef struct { nfs_fh3 dir; uint64_t cookie; char cookieverf[8]; uint32_t count; } READDIR3args;
typedef struct entry3 { uint64_t fileid; char *name; uint64_t cookie; struct entry3 *nextentry; } entry3;
typedef struct { entry3 *entries; uint32_t eof; } dirlist3;
typedef struct { post_op_attr dir_attributes; char cookieverf[8]; dirlist3 reply; } READDIR3resok;
typedef struct { nfsstat3 status; union { READDIR3resok resok; } READDIR3res_u; } READDIR3res;

typedef struct {
    nfs_fh3 dir; uint64_t cookie; char cookieverf[8]; uint32_t dircount; uint32_t maxcount;
} READDIRPLUS3args;
typedef struct entryplus3 {
    uint64_t fileid; char *name; uint64_t cookie; post_op_attr name_attributes; post_op_fh3 name_handle;
    struct entryplus3 *nextentry;
} entryplus3;
typedef struct { entryplus3 *entries; uint32_t eof; } dirlistplus3;
typedef struct { post_op_attr dir_attributes; char cookieverf[8]; dirlistplus3 reply; } READDIRPLUS3resok;
typedef struct { nfsstat3 status; union { READDIRPLUS3resok resok; } READDIRPLUS3res_u; } READDIRPLUS3res;

typedef struct { nfs_fh3 fsroot; } FSSTAT3args;
typedef struct {
    post_op_attr obj_attributes; uint64_t tbytes; uint64_t fbytes; uint64_t abytes;
    uint64_t tfiles; uint64_t ffiles; uint64_t afiles; uint32_t invarsec;
} FSSTAT3resok;
typedef struct { nfsstat3 status; union { FSSTAT3resok resok; } FSSTAT3res_u; } FSSTAT3res;

typedef struct { nfs_fh3 fsroot; } FSINFO3args;
typedef struct {
    post_op_attr obj_attributes; uint32_t rtmax; uint32_t rtpref; uint32_t rtmult;
    uint32_t wtmax; uint32_t wtpref; uint32_t wtmult; uint32_t dtpref;
    uint64_t maxfilesize; nfstime3 time_delta; uint32_t properties;
} FSINFO3resok;
typedef struct { nfsstat3 status; union { FSINFO3resok resok; } FSINFO3res_u; } FSINFO3res;

typedef struct { nfs_fh3 object; } PATHCONF3args;
typedef struct {
    post_op_attr obj_attributes; uint32_t linkmax; uint32_t name_max; uint32_t no_trunc;
    uint32_t chown_restricted; uint32_t case_insensitive; uint32_t case_preserving;
} PATHCONF3resok;
typedef struct { nfsstat3 status; union { PATHCONF3resok resok; } PATHCONF3res_u; } PATHCONF3res;

typedef struct { nfs_fh3 file; uint64_t offset; uint32_t count; } COMMIT3args;
typedef struct { wcc_data file_wcc; char verf[8]; } COMMIT3resok;
typedef struct { nfsstat3 status; union { COMMIT3resok resok; } COMMIT3res_u; } COMMIT3res;

typedef struct { uint32_t fhandle3_len; char *fhandle3_val; } fhandle3;
typedef struct {
    fhandle3 fhandle; struct { uint32_t auth_flavors_len; int *auth_flavors_val; } auth_flavors;
} mountres3_ok;
typedef struct { mountstat3 fhs_status; union { mountres3_ok mountinfo; } mountres3_u; } mountres3;
"""

FUNCTIONS = """
struct rpc_context;
struct AUTH;
typedef void (*rpc_cb)(struct rpc_context *rpc, int status, void *data, void *private_data);

struct rpc_context *rpc_init_context(void);
void rpc_destroy_context(struct rpc_context *rpc);
int rpc_get_fd(struct rpc_context *rpc);
int rpc_which_events(struct rpc_context *rpc);
int rpc_service(struct rpc_context *rpc, int revents);
char *rpc_get_error(struct rpc_context *rpc);
void rpc_set_next_xid(struct rpc_context *rpc, uint32_t xid);
void rpc_set_auth(struct rpc_context *rpc, struct AUTH *auth);
int rpc_connect_port_async(
    struct rpc_context *rpc, const char *server, int port, int program, int version, rpc_cb cb, void *key);
int rpc_connect_program_async(
    struct rpc_context *rpc, const char *server, int program, int version, rpc_cb cb, void *key);
struct AUTH *libnfs_authunix_create(
    const char *host, uint32_t uid, uint32_t gid, uint32_t len, uint32_t *groups);

extern "Python" void libnfs_reply(struct rpc_context *rpc, int status, void *data, void *key);

#define READ_INTO_BUFFER ...
int guards_stand(void);
int call_mnt(struct rpc_context *rpc, char *path, void *key);
int call_read(struct rpc_context *rpc, READ3args *args, void *buffer, void *key);
"""

SOURCE = """
#define _GNU_SOURCE
#include <nfsc/libnfs.h>
#include <nfsc/libnfs-raw.h>
#include <nfsc/libnfs-raw-mount.h>
#include <nfsc/libnfs-raw-nfs.h>

static void libnfs_reply(struct rpc_context *rpc, int status, void *data, void *key);

#ifdef LIBNFS_API_V2
#define READ_INTO_BUFFER 1
#define CALL(name, ...) (rpc_##name##_task(__VA_ARGS__) == NULL ? -1 : 0)
static int call_read(struct rpc_context *rpc, READ3args *args, void *buffer, void *key)
{
    return CALL(nfs3_read, rpc, libnfs_reply, buffer, args->count, args, key);
}
#else
#define READ_INTO_BUFFER 0
#define CALL(name, ...) (rpc_##name##_async(__VA_ARGS__) == 0 ? 0 : -1)
static int call_read(struct rpc_context *rpc, READ3args *args, void *buffer, void *key)
{
    (void)buffer;
    return CALL(nfs3_read, rpc, libnfs_reply, args, key);
}
#endif

static int call_mnt(struct rpc_context *rpc, char *path, void *key)
{
    return CALL(mount3_mnt, rpc, libnfs_reply, path, key);
}
"""

GUARDS = """
#include <arpa/inet.h>
#include <dlfcn.h>
#include <string.h>

static uint32_t bytes_left(ZDR *zdr)
{
    return zdr->pos < 0 || zdr->pos > zdr->size ? 0 : (uint32_t)(zdr->size - zdr->pos);
}

static int length_fits(ZDR *zdr, uint32_t unit)
{
    uint32_t length;

    if (zdr->x_op != ZDR_DECODE)
        return 1;
    if (bytes_left(zdr) < 4)
        return 0;
    memcpy(&length, zdr->buf + zdr->pos, 4);
    return ntohl(length) <= (bytes_left(zdr) - 4) / unit;
}

#define NEXT(name) \\
    static __typeof__(&name) next; \\
    if (next == NULL) \\
        next = (__typeof__(&name))dlsym(RTLD_NEXT, #name);

bool_t libnfs_zdr_bytes(ZDR *zdr, char **bytes, uint32_t *size, uint32_t maxsize)
{
    NEXT(libnfs_zdr_bytes)
    return length_fits(zdr, 1) ? next(zdr, bytes, size, maxsize) : 0;
}

bool_t libnfs_zdr_string(ZDR *zdr, char **string, uint32_t maxsize)
{
    NEXT(libnfs_zdr_string)
    return length_fits(zdr, 1) ? next(zdr, string, maxsize) : 0;
}

bool_t libnfs_zdr_array(
    ZDR *zdr, char **array, uint32_t *size, uint32_t maxsize, uint32_t elsize, zdrproc_t proc)
{
    NEXT(libnfs_zdr_array)
    return length_fits(zdr, 4) ? next(zdr, array, size, maxsize, elsize, proc) : 0;
}

bool_t libnfs_zdr_opaque(ZDR *zdr, char *bytes, uint32_t size)
{
    NEXT(libnfs_zdr_opaque)
    return zdr->x_op != ZDR_DECODE || size <= bytes_left(zdr) ? next(zdr, bytes, size) : 0;
}

static int guards_stand(void)
{
    /* Without them this length is taken, and only the position is lost. */
    char reply[8] = {(char)0x80, 0, 0, 0};
    nfs_fh3 handle;
    ZDR zdr;
    int taken;

    memset(&handle, 0, sizeof(handle));
    libnfs_zdrmem_create(&zdr, reply, sizeof(reply), ZDR_DECODE);
    taken = zdr_nfs_fh3(&zdr, &handle);
    libnfs_zdr_destroy(&zdr);
    return !taken;
}
"""

SHIM = """
static int call_{name}(struct rpc_context *rpc, {args} *args, void *key)
{{
    return CALL(nfs3_{name}, rpc, libnfs_reply, args, key);
}}
"""

DECLARATION = """
int call_{name}(struct rpc_context *rpc, {args} *args, void *key);
"""


def _each_procedure(template: str) -> str:
    return "".join(template.format(name=name, args=args) for name, args in PROCEDURES)


ffibuilder = FFI()
ffibuilder.cdef(TYPES + FUNCTIONS + _each_procedure(DECLARATION))
ffibuilder.set_source("fuseswap.backends.nfs._libnfs", SOURCE + GUARDS + _each_procedure(SHIM), libraries=["nfs"])
