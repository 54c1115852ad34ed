// What a request with options begins with, in CRIU's order, which clients rely on: who is the client, its options, its
// configuration file, the directories, the work directory, the log.

import {
  closeSync,
  existsSync,
  fstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  statSync,
} from "node:fs";
import { RepriseError } from "../errors.ts";
import type { CriuOpts } from "../images/schema/messages.generated.ts";
import { SO_PEERCRED, SOL_SOCKET } from "../sys/abi/socket.ts";
import { getOption } from "../sys/socket.ts";
import { configArguments, parseConfig } from "./config-file.ts";
import { logHeader, openLog } from "./log-file.ts";
import { parseOptions, type CriuOptions } from "./options.ts";
import { enterDirectories, type Directories } from "./paths.ts";
import { requestArguments } from "./rpc-options.ts";

/** What a request works with. */
export interface Session {
  readonly options: CriuOptions;
  readonly directories: Directories;
  /** What was opened for it. */
  readonly fds: readonly number[];
}

/** What the worker is for. */
export interface SessionKind {
  /** A worker of `criu service` has other descriptors and another parent than its client thinks. */
  readonly worker: "swrk" | "service";
  /** The request saves the client itself when it names no process. */
  readonly needsPid: boolean;
  /** A request without images works in its work directory. @default true */
  readonly needsImages?: boolean;
}

const DEFAULT_LOG = "criu.log";

/** Reads the options, enters the directories and opens the log. @throws RepriseError */
export function beginSession(socket: number, opts: CriuOpts, kind: SessionKind): Session {
  const peer = peerPid(socket);
  checkWorker(opts, kind);
  const fds: number[] = [];
  const open = (fd: number, what: string): number => {
    const opened = openOf(peer, fd, what);
    fds.push(opened);
    return opened;
  };
  // The status descriptor is the client's: a copy for ourselves.
  const status =
    opts.status_fd === undefined ? [] : [`--status-fd=${open(opts.status_fd, "status")}`];
  const own = [...requestArguments(opts), ...logArguments(opts), ...status];
  const file = fileArguments(opts.config_file);
  const words = opts.exec_cmd.length === 0 ? [] : ["--", "restore", ...opts.exec_cmd];
  const told = parseOptions([file]).values;
  const client =
    kind.needsPid && (opts.pid ?? 0) === 0 ? [`--tree=${peer}`] : ([] as readonly string[]);
  const options = parseOptions([...configArguments([], process.env), own, client, file, words]);
  const directories = enterDirectories({
    ...options,
    values: { ...options.values, ...directoriesOf(opts, told, options, { open, kind }) },
  });
  const log = logFile(opts, options, told["log-file"]);
  openLog({ verbosity: options.verbosity, file: log });
  logHeader();
  checkRights(options);
  return { options, directories, fds };
}

/** What a request's options come to, but for its descriptors. @throws RepriseError */
export function requestOptions(opts: CriuOpts): CriuOptions {
  const file = fileArguments(opts.config_file);
  return parseOptions([...configArguments([], process.env), requestArguments(opts), file]);
}

/** The pid of who made the connection (SO_PEERCRED). @throws RepriseError SYSCALL */
function peerPid(socket: number): number {
  const credentials = getOption(socket, { level: SOL_SOCKET, name: SO_PEERCRED, size: 12 });
  if (typeof credentials === "number") {
    throw new RepriseError("BAD_ARGUMENT", `descriptor ${socket} is no socket of a client`, {
      hint: "criu swrk is started by libraries and runtimes, with a socket that they made.",
    });
  }
  return credentials.readInt32LE(0);
}

function checkWorker(opts: CriuOpts, { worker }: SessionKind): void {
  if (worker === "swrk") return;
  const what =
    opts.rst_sibling !== undefined
      ? "rst_sibling"
      : opts.inherit_fd.length > 0
        ? "inherit_fd"
        : opts.ps?.fd !== undefined
          ? "ps.fd"
          : undefined;
  if (what === undefined) return;
  throw new RepriseError("BAD_ARGUMENT", `${what} is not allowed in standalone service`, {
    hint: "The descriptors and the parent are those of a worker that the client starts itself (criu swrk).",
  });
}

/** The client's configuration file wins over its request. One that is missing is no error. */
function fileArguments(path: string | undefined): string[] {
  if (path === undefined || path === "" || !existsSync(path)) return [];
  return parseConfig(readFileSync(path, "utf8"), path);
}

function logArguments({ log_file }: CriuOpts): string[] {
  if (log_file === undefined) return [];
  if (!log_file.includes("/")) return [`--log-file=${log_file}`];
  throw new RepriseError("BAD_ARGUMENT", "No subdirs are allowed in log_file name", {
    hint: "The log lies in the work directory.",
  });
}

type Values = CriuOptions["values"];

/** By descriptors of the client (work_dir_fd, images_dir_fd), unless its configuration file names others. */
function directoriesOf(
  opts: CriuOpts,
  told: Values,
  { values }: CriuOptions,
  {
    open,
    kind,
  }: { readonly open: (fd: number, what: string) => number; readonly kind: SessionKind },
): Values {
  const images =
    told["images-dir"] ??
    (opts.images_dir_fd === NO_DIRECTORY
      ? opts.images_dir
      : ownPath(open(opts.images_dir_fd, "images directory")));
  const work =
    told["work-dir"] ??
    (opts.work_dir_fd === undefined
      ? values["work-dir"]
      : ownPath(open(opts.work_dir_fd, "work directory")));
  if (images === undefined && kind.needsImages === false && work !== undefined)
    return { "images-dir": work, "work-dir": work };
  if (images === undefined) {
    throw new RepriseError("BAD_ARGUMENT", "neither images_dir_fd nor images_dir is given", {
      hint: "The client must tell where the images are.",
    });
  }
  return { "images-dir": images, "work-dir": work ?? images };
}

const NO_DIRECTORY = -1;

/**
 * A path of a directory that we hold open: its real one where it leads there; else one that holds in every process that sees our
 * /proc, also when the client is gone.
 */
function ownPath(fd: number): string {
  const link = `/proc/${process.pid}/fd/${fd}`;
  const path = readlinkSync(link);
  const [real, held] = [statSync(path, { throwIfNoEntry: false }), fstatSync(fd)];
  return real?.ino === held.ino && real.dev === held.dev ? path : link;
}

/** Opens what a descriptor of another process stands for, once more. */
function openOf(pid: number, fd: number, what: string): number {
  const path = `/proc/${pid}/fd/${fd}`;
  try {
    return openSync(path, what === "status" ? "w" : "r");
  } catch (cause) {
    const errno = cause instanceof Error && "code" in cause ? String(cause.code) : "unknown error";
    throw new RepriseError("BAD_ARGUMENT", `cannot open the ${what} ${path}: openat: ${errno}`, {
      hint: "It is a descriptor of the RPC client, which must keep it open until it has the answer.",
      cause,
    });
  }
}

/** The log lies in the work directory, to which we have changed by now; undefined for standard error. */
function logFile(
  opts: CriuOpts,
  options: CriuOptions,
  told: string | undefined,
): string | undefined {
  if (told !== undefined) return told;
  if (opts.log_file === undefined && opts.log_to_stderr === true) return undefined;
  return options.values["log-file"] ?? DEFAULT_LOG;
}

function checkRights({ flags }: CriuOptions): void {
  if (process.geteuid?.() === 0 || flags.has("unprivileged")) return;
  throw new RepriseError("NOT_PERMITTED", "the RPC worker does not run as root", {
    hint: "Run it as root, or set the option unprivileged.",
  });
}

/** Closes what was opened for it. */
export function endSession({ directories, fds }: Session): void {
  for (const fd of [directories.imagesDirFd, ...fds]) closeSync(fd);
}
