// The requests that need the engine, each with its answer: the same actions as on the command line, whose failures become
// cr_errno and cr_errmsg.

import { fstatSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { CriuReqType, type CriuOpts, type CriuReq } from "../images/schema/messages.generated.ts";
import { log } from "../log.ts";
import { ERRNO_NAMES } from "../sys/errno.ts";
import { asFailure } from "./failure.ts";
import { logError, logFd } from "./log-file.ts";
import { prepareKernel } from "./prepare-kernel.ts";
import { rpcClient } from "./rpc-client.ts";
import { beginSession, endSession, type Session, type SessionKind } from "./rpc-session.ts";
import { sendResponse, receiveRequest, type Response } from "./rpc-socket.ts";
import { noteOptions } from "./support.ts";

type Worker = SessionKind["worker"];

const FAILURE = 1;
const MINUS_ONE = 255;
const EBADRQC = 56;

const NO_OPTIONS: CriuOpts = {
  images_dir_fd: -1,
  veths: [],
  exec_cmd: [],
  ext_mnt: [],
  cg_root: [],
  inherit_fd: [],
  skip_mnt: [],
  enable_fs: [],
  unix_sk_ino: [],
  irmap_scan_paths: [],
  external: [],
  join_ns: [],
  cgroup_dump_controller: [],
};

/** Does what a request asks, and answers. Returns the exit code of the worker. */
export async function act(socket: number, request: CriuReq, worker: Worker): Promise<number> {
  const opts = request.opts ?? NO_OPTIONS;
  switch (request.type) {
    case CriuReqType.DUMP:
      return dumpRequest(socket, opts, worker);
    case CriuReqType.RESTORE:
      return restoreRequest(socket, opts, worker);
    case CriuReqType.CPUINFO_DUMP:
    case CriuReqType.CPUINFO_CHECK:
      return cpuinfoRequest(socket, request, worker);
    case CriuReqType.CHECK:
      return checkRequest(socket, request.opts, worker);
    case CriuReqType.PRE_DUMP:
      return preDumpRequests(socket, opts, worker);
    case CriuReqType.SINGLE_PRE_DUMP:
      return (await preDump(socket, opts, { worker, type: request.type })) ? 0 : MINUS_ONE;
    case CriuReqType.PAGE_SERVER:
    case CriuReqType.PAGE_SERVER_CHLD:
      return pageServerRequest(socket, request, worker);
    case CriuReqType.WAIT_PID:
      return waitRequest(socket, request.pid ?? 0);
    default:
      return refuse(socket, request.type);
  }
}

async function dumpRequest(socket: number, opts: CriuOpts, worker: Worker): Promise<number> {
  const type = CriuReqType.DUMP;
  await prepareKernel();
  const failure = await attempt("Dumping", async (begin) => {
    const session = begin(() => beginSession(socket, opts, { worker, needsPid: true }));
    const { dump } = await import("./dump.ts");
    const client = opts.notify_scripts === true ? rpcClient(socket) : undefined;
    const status = await dump(session.options, session.directories, {
      client,
      socketInode: fstatSync(socket).ino,
    });
    if (status !== 0)
      throw new RepriseError("BAD_ARGUMENT", `the post-dump script ended with ${status}`);
  });
  // A client that has saved itself is gone.
  const saysIt = failure !== undefined || opts.leave_running === true || (opts.pid ?? 0) !== 0;
  if (saysIt) {
    sendResponse(socket, {
      type,
      success: failure === undefined,
      ...failure,
      dump: { restored: false },
    });
  }
  return failure === undefined ? 0 : FAILURE;
}

/** Pre-dumps on one connection, and the dump that they were for. A client may also leave it at the pre-dumps. */
async function preDumpRequests(socket: number, first: CriuOpts, worker: Worker): Promise<number> {
  const type = CriuReqType.PRE_DUMP;
  for (let opts = first; ;) {
    if (!(await preDump(socket, opts, { worker, type }))) return MINUS_ONE;
    const next = receiveRequest(socket);
    if (next === undefined) return 0;
    if (next.type === CriuReqType.DUMP) return dumpRequest(socket, next.opts ?? NO_OPTIONS, worker);
    if (next.type !== type) {
      const error = new RepriseError(
        "BAD_ARGUMENT",
        `a request of type ${next.type} after a pre-dump`,
      );
      logError(error);
      sendResponse(socket, { type: CriuReqType.EMPTY, success: false, ...failureOf(error) });
      return MINUS_ONE;
    }
    opts = next.opts ?? NO_OPTIONS;
  }
}

/** One pre-dump. The client is told of no steps. */
async function preDump(
  socket: number,
  opts: CriuOpts,
  { worker, type }: { readonly worker: Worker; readonly type: number },
): Promise<boolean> {
  const failure = await attempt("Pre-dumping", async (begin) => {
    const session = begin(() => beginSession(socket, opts, { worker, needsPid: true }));
    const { preDumpAction } = await import("./pre-dump.ts");
    await preDumpAction(session.options, session.directories);
  });
  sendResponse(socket, { type, success: failure === undefined, ...failure });
  return failure === undefined;
}

async function restoreRequest(socket: number, opts: CriuOpts, worker: Worker): Promise<number> {
  let pid = -1;
  const failure = await attempt("Restoring", async (begin) => {
    const session = begin(() => beginSession(socket, opts, { worker, needsPid: false }));
    const { restoreTree } = await import("./restore.ts");
    const client = opts.notify_scripts === true ? rpcClient(socket) : undefined;
    ({ pid } = await restoreTree(session.options, session.directories, client));
  });
  sendResponse(socket, {
    type: CriuReqType.RESTORE,
    success: failure === undefined,
    ...failure,
    restore: { pid },
  });
  if (failure !== undefined) return FAILURE;
  if (opts.exec_cmd.length > 0) {
    const { becomeProgram } = await import("./exec.ts");
    becomeProgram(opts.exec_cmd, { output: logFd() });
  }
  return 0;
}

async function cpuinfoRequest(socket: number, request: CriuReq, worker: Worker): Promise<number> {
  const { type, opts = NO_OPTIONS } = request;
  const failure = await attempt("Looking at the processor", async (begin) => {
    const session = begin(() => beginSession(socket, opts, { worker, needsPid: false }));
    const { cpuinfoAction } = await import("./cpuinfo.ts");
    const action = type === CriuReqType.CPUINFO_DUMP ? "dump" : "check";
    cpuinfoAction({ ...session.options, words: ["cpuinfo", action] }, session.directories);
  });
  sendResponse(socket, { type, success: failure === undefined, ...failure });
  return 0;
}

/** A check needs no images, and directories only for a log that the client asks for. */
async function checkRequest(
  socket: number,
  opts: CriuOpts | undefined,
  worker: Worker,
): Promise<number> {
  const wantsLog = opts?.log_file !== undefined && opts.log_to_stderr !== true;
  let isGood = false;
  const failure = await attempt("Checking", async (begin) => {
    if (wantsLog) {
      const kind = { worker, needsPid: false, needsImages: opts.work_dir_fd === undefined };
      begin(() => beginSession(socket, opts, kind));
    }
    const { isGoodEnough } = await import("./check.ts");
    isGood = isGoodEnough();
  });
  const success = failure === undefined && isGood;
  sendResponse(socket, { type: CriuReqType.CHECK, success, ...failure });
  return 0;
}

/** CRIU answers both kinds with one type. */
async function pageServerRequest(
  socket: number,
  request: CriuReq,
  worker: Worker,
): Promise<number> {
  let ps: { pid: number; port: number } | undefined;
  const failure = await attempt("Starting the page server", async (begin) => {
    const opts = request.opts ?? NO_OPTIONS;
    const session = begin(() => beginSession(socket, opts, { worker, needsPid: false }));
    const { startPageServer } = await import("./rpc-page-server.ts");
    ps = await startPageServer(session, {
      isChild: request.type === CriuReqType.PAGE_SERVER_CHLD,
    });
  });
  sendResponse(socket, {
    type: CriuReqType.PAGE_SERVER,
    success: failure === undefined,
    ...failure,
    ...(ps === undefined ? {} : { ps }),
  });
  return failure === undefined ? 0 : FAILURE;
}

/** Waits for a child of the worker: a page server that PAGE_SERVER_CHLD started. */
async function waitRequest(socket: number, pid: number): Promise<number> {
  const type = CriuReqType.WAIT_PID;
  const { waitForPageServer } = await import("./rpc-page-server.ts");
  const status = await waitForPageServer(pid);
  if (status !== undefined) {
    sendResponse(socket, { type, success: true, status });
    return 0;
  }
  const { waitFor } = await import("../sys/process.ts");
  const result = waitFor(pid);
  if (result === undefined) sendResponse(socket, { type, success: false, cr_errno: ECHILD });
  else sendResponse(socket, { type, success: true, status: result.status });
  return 0;
}

const ECHILD = 10;

function refuse(socket: number, type: number): number {
  const name = Object.entries(CriuReqType).find(([, value]) => value === type)?.[0] ?? String(type);
  const error = new RepriseError("UNSUPPORTED", `the RPC request ${name} is not supported yet`);
  logError(error);
  sendResponse(socket, { type, success: false, ...failureOf(error) });
  return FAILURE;
}

/** What a failed request tells. */
type Failure = Pick<Exclude<Response, undefined>, "cr_errno" | "cr_errmsg">;

/** Runs an action; `begin` marks the part whose failures are the request's own fault. */
async function attempt(
  what: string,
  action: (begin: (open: () => Session) => Session) => Promise<void>,
): Promise<Failure | undefined> {
  const sessions: Session[] = [];
  const begin = (open: () => Session): Session => {
    const session = open();
    sessions.push(session);
    noteOptions(session.options);
    return session;
  };
  try {
    await action(begin);
    return undefined;
  } catch (thrown) {
    const error = asFailure(thrown);
    logError(error);
    log.error(`${what} FAILED.`);
    const failure = failureOf(error);
    return sessions.length > 0 ? failure : { ...failure, cr_errno: EBADRQC };
  } finally {
    sessions.forEach(endSession);
  }
}

/** Always with a number: runc shows nothing else. */
function failureOf(error: RepriseError): Failure {
  return { cr_errno: errnoOf(error), cr_errmsg: error.message };
}

const EIO = 5;
const EINVAL = 22;

/** Those that clients know: no such process, pid taken. */
const BY_CODE: Partial<Record<RepriseError["code"], number>> = {
  NO_SUCH_PROCESS: 3,
  TASK_DIED: 3,
  NOT_PERMITTED: 1,
  PID_TAKEN: 17,
  UNSUPPORTED: 95,
  KERNEL_FEATURE: 95,
  FREEZE_TIMEOUT: 110,
  IMAGE_MISSING: 2,
  BAD_IMAGE: EINVAL,
  IMAGE_VERSION: EINVAL,
  FILE_CHANGED: EINVAL,
  BAD_ARGUMENT: EINVAL,
};

function errnoOf({ code, errno }: RepriseError): number {
  const known = BY_CODE[code];
  if (known !== undefined) return known;
  const named = Object.entries(ERRNO_NAMES).find(([, name]) => name === errno)?.[0];
  return named === undefined ? EIO : Number(named);
}
