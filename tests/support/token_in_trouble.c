/*
 * A PKCS#11 module in front of SoftHSM that does as it is told, so that tests can have a slow token, or one that is gone.
 *
 * Before each call named in CALLS it appends the call's name to $TOKEN_CALLS, then looks into the file $TOKEN_TROUBLE:
 *   CALL wait          that call waits until the file changes
 *   CALL RV            that call answers the CK_RV of this hexadecimal number
 *   CALL RV once       so, and the file is removed
 *   CALL wait once     one call waits: the file becomes $TOKEN_TROUBLE.waits, until that is gone
 * Each line is about one call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long CK_RV;
typedef unsigned long (*function)(void *, void *, void *, void *, void *, void *);

/* CK_FUNCTION_LIST of PKCS#11 2.40: a version and 68 functions. */
struct list { unsigned char version[2]; function functions[68]; };

enum { INITIALIZE = 0, FINALIZE = 1, GET_FUNCTION_LIST = 3, GET_SLOT_LIST = 4, OPEN_SESSION = 12, CLOSE_SESSION = 13, LOGIN = 18, SIGN_INIT = 42 };
static const struct { int index; const char *name; } CALLS[] = {
    {INITIALIZE, "C_Initialize"}, {FINALIZE, "C_Finalize"}, {GET_SLOT_LIST, "C_GetSlotList"},
    {OPEN_SESSION, "C_OpenSession"}, {CLOSE_SESSION, "C_CloseSession"}, {LOGIN, "C_Login"}, {SIGN_INIT, "C_SignInit"},
};
static struct list *real, ours;

static const char *name_of(int index) {
    for (size_t at = 0; at < sizeof CALLS / sizeof *CALLS; at++)
        if (CALLS[at].index == index) return CALLS[at].name;
    abort();
}

static int trouble(const char *name, char what[32], char times[32]) {
    FILE *file = fopen(getenv("TOKEN_TROUBLE"), "r");
    if (!file) return 0;
    char line[128], call[32];
    int found = 0;
    while (!found && fgets(line, sizeof line, file)) {
        *times = 0;
        found = sscanf(line, "%31s %31s %31s", call, what, times) >= 2 && !strcmp(call, name);
    }
    fclose(file);
    return found;
}

static void wait_once(void) {
    char waits[4096];
    snprintf(waits, sizeof waits, "%s.waits", getenv("TOKEN_TROUBLE"));
    /* Of several threads that see it, only the one that renames it is the once. */
    if (rename(getenv("TOKEN_TROUBLE"), waits)) return;
    while (!access(waits, F_OK)) usleep(2000);
}

static CK_RV meet(int index) {
    const char *name = name_of(index);
    char what[32], times[32], line[32];
    int calls = open(getenv("TOKEN_CALLS"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    ssize_t written = write(calls, line, snprintf(line, sizeof line, "%s\n", name));
    close(calls);
    if (written < 0) abort();
    while (trouble(name, what, times)) {
        if (!strcmp(what, "wait")) { *times ? wait_once() : (void)usleep(2000); continue; }
        /* Of several threads that see it, only the one that removes it is the once. */
        if (!*times || !unlink(getenv("TOKEN_TROUBLE"))) return strtoul(what, NULL, 16);
    }
    return 0;
}

#define CALL(INDEX) \
    static CK_RV call_##INDEX(void *a, void *b, void *c, void *d, void *e, void *f) { \
        CK_RV answer = meet(INDEX); \
        return answer ? answer : real->functions[INDEX](a, b, c, d, e, f); \
    }
CALL(INITIALIZE) CALL(FINALIZE) CALL(GET_SLOT_LIST) CALL(OPEN_SESSION) CALL(CLOSE_SESSION) CALL(LOGIN) CALL(SIGN_INIT)

CK_RV C_GetFunctionList(struct list **list) {
    void *library = dlopen(getenv("TOKEN_MODULE"), RTLD_NOW | RTLD_LOCAL);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 5; }
    CK_RV (*get)(struct list **) = (CK_RV (*)(struct list **))dlsym(library, "C_GetFunctionList");
    CK_RV answer = get(&real);
    if (answer) return answer;
    ours = *real;
    ours.functions[GET_FUNCTION_LIST] = (function)C_GetFunctionList;
    ours.functions[INITIALIZE] = call_INITIALIZE;
    ours.functions[FINALIZE] = call_FINALIZE;
    ours.functions[GET_SLOT_LIST] = call_GET_SLOT_LIST;
    ours.functions[OPEN_SESSION] = call_OPEN_SESSION;
    ours.functions[CLOSE_SESSION] = call_CLOSE_SESSION;
    ours.functions[LOGIN] = call_LOGIN;
    ours.functions[SIGN_INIT] = call_SIGN_INIT;
    *list = &ours;
    return 0;
}
