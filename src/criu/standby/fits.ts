// Which command lines a resident engine takes: those that are done in one go. What becomes another program, stays as a server, or
// waits for its child has to be a process of its own.

import type { CriuReq } from "../../images/schema/messages.generated.ts";
import { CriuReqType } from "../../images/schema/messages.generated.ts";
import { configArguments } from "../config-file.ts";
import { parseOptions, type CriuOptions } from "../options.ts";
import { peekRequest } from "../rpc-socket.ts";
import { requestOptions } from "../rpc-session.ts";

const ACTIONS: ReadonlySet<string> = new Set(["check", "dump", "pre-dump", "restore"]);

const REQUESTS: ReadonlySet<number> = new Set([
  CriuReqType.CHECK,
  CriuReqType.DUMP,
  CriuReqType.FEATURE_CHECK,
  CriuReqType.PRE_DUMP,
  CriuReqType.RESTORE,
  CriuReqType.SINGLE_PRE_DUMP,
  CriuReqType.VERSION,
]);

/** Whether a resident engine takes this command line. What it cannot read is for the ordinary way, too, to complain about. */
export function fits(args: readonly string[]): boolean {
  try {
    const options = parseOptions([...configArguments(args, process.env), args]);
    const [action = "", fd = ""] = options.words;
    if (action === "swrk") return /^\d+$/.test(fd) && fitsRequest(peekRequest(Number(fd)));
    const isDetached = action !== "restore" || options.flags.has("restore-detached");
    return ACTIONS.has(action) && isDetached && !isLasting(options);
  } catch {
    return false;
  }
}

function fitsRequest(request: CriuReq | undefined): boolean {
  if (request === undefined || !REQUESTS.has(request.type)) return false;
  const { opts } = request;
  if (opts === undefined) return true;
  return opts.exec_cmd.length === 0 && opts.ps === undefined && !isLasting(requestOptions(opts));
}

const LASTING = [
  "exec-cmd",
  "lazy-pages",
  "log-pid",
  "page-server",
  "stream",
  "tls",
  "unprivileged",
] as const;

function isLasting({ flags, lists }: CriuOptions): boolean {
  // A pid namespace is entered for children only, and here another process makes them.
  const entersPids = lists.external?.some((key) => key.startsWith("pid[")) === true;
  return entersPids || LASTING.some((flag) => flags.has(flag));
}
