// `criu swrk FD`: one RPC conversation on an inherited socket. Runtimes start it two or three times for one checkpoint, so
// what a request does not need is not loaded: VERSION and FEATURE_CHECK know nothing of the engine. Descriptors 0 to 2 may be
// a container's own and are not touched.

import { RepriseError } from "../errors.ts";
import { CriuReqType, type CriuReq } from "../images/schema/messages.generated.ts";
import { log } from "../log.ts";
import { CRIU_VERSION } from "../version.ts";
import { receiveRequest, sendResponse } from "./rpc-socket.ts";
import type { SessionKind } from "./rpc-session.ts";

/** What a return of -1 from a C program's main is. */
const MINUS_ONE = 255;

/** Requests after which the same connection may bring another one. */
const KEEPS_OPEN: ReadonlySet<number> = new Set([
  CriuReqType.PAGE_SERVER,
  CriuReqType.PAGE_SERVER_CHLD,
  CriuReqType.CPUINFO_DUMP,
  CriuReqType.CPUINFO_CHECK,
  CriuReqType.FEATURE_CHECK,
  CriuReqType.VERSION,
]);

/** Serves one connection. Returns the exit code. */
export async function serve(
  socket: number,
  options: {
    readonly worker: SessionKind["worker"];
    /** Called before the engine is loaded. */
    readonly onAction: () => void;
  },
): Promise<number> {
  for (;;) {
    const request = receiveFirst(socket);
    if (request === undefined) {
      log.error("the RPC client went without a request");
      return MINUS_ONE;
    }
    const { type } = request;
    if (request.keep_open === true && !KEEPS_OPEN.has(type)) {
      log.error(`a request of type ${type} cannot keep the connection open`);
      return MINUS_ONE;
    }
    const status = await answer(socket, request, options);
    if (status !== 0 || request.keep_open !== true) return status;
  }
}

function receiveFirst(socket: number): CriuReq | undefined {
  try {
    return receiveRequest(socket);
  } catch (cause) {
    if (cause instanceof RepriseError) throw cause;
    const errno = cause instanceof Error && "code" in cause ? String(cause.code) : "unknown error";
    throw new RepriseError("BAD_ARGUMENT", `cannot read a request: read: ${errno}`, {
      hint: "criu swrk is started by libraries and runtimes, with a socket that they made.",
      cause,
    });
  }
}

async function answer(
  socket: number,
  request: CriuReq,
  { worker, onAction }: Parameters<typeof serve>[1],
): Promise<number> {
  switch (request.type) {
    case CriuReqType.VERSION:
      return answerVersion(socket);
    case CriuReqType.FEATURE_CHECK: {
      const { features } = await import("./rpc-features.ts");
      sendResponse(socket, {
        type: CriuReqType.FEATURE_CHECK,
        success: true,
        features: features(request.features),
      });
      return 0;
    }
    case CriuReqType.DUMP:
    case CriuReqType.RESTORE:
    case CriuReqType.CHECK:
    case CriuReqType.PRE_DUMP:
    case CriuReqType.SINGLE_PRE_DUMP:
    case CriuReqType.PAGE_SERVER:
    case CriuReqType.PAGE_SERVER_CHLD:
    case CriuReqType.WAIT_PID:
    case CriuReqType.CPUINFO_DUMP:
    case CriuReqType.CPUINFO_CHECK: {
      onAction();
      const { act } = await import("./rpc-actions.ts");
      return act(socket, request, worker);
    }
    default: {
      const error = new RepriseError("BAD_ARGUMENT", `unknown request type ${request.type}`);
      log.error(error.message);
      sendResponse(socket, { type: CriuReqType.EMPTY, success: false, cr_errmsg: error.message });
      return MINUS_ONE;
    }
  }
}

/** Without `gitid`: with one, go-criu takes the next minor number for the version. */
function answerVersion(socket: number): number {
  const { major, minor } = CRIU_VERSION;
  sendResponse(socket, {
    type: CriuReqType.VERSION,
    success: true,
    version: { major_number: major, minor_number: minor },
  });
  return 0;
}
