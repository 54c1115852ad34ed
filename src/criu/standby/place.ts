// Taking the place of a command that waits: its arguments, environment, directory and descriptors become those of this process,
// until they are given back.

import { closeSync, openSync, readFileSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { readCmdline } from "../../proc/cmdline.ts";
import { readFdNumbers } from "../../proc/fd.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import { readNamespaces } from "../../proc/ns.ts";
import { readStatus, type TaskStatus } from "../../proc/status.ts";
import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { standInFor } from "../../sys/front.ts";
import { restartLog } from "../log-file.ts";
import { FIRST_OWN_FD, type Request } from "./protocol.ts";

/** A place that was taken. */
export interface Place {
  /** The command's arguments. */
  readonly args: readonly string[];
  giveBack(): void;
}

/** What makes a command one that we cannot stand in for. */
export function whyUnlike({ front, fifo, words, request }: Request): string | undefined {
  try {
    const [asked, ours] = [statSync(`/proc/${front}/fd/${request}`), statSync(fifo)];
    // In another pid namespace the number that it told is somebody else's here.
    const isIt = asked.ino === ours.ino && asked.dev === ours.dev;
    if (!isIt) return "it is in another pid namespace";
    if (!isOurs(front, words)) return "it belongs to another installation";
    return whatDiffers(front);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Whether the script would start the very program that we are. */
function isOurs(front: number, words: number): boolean {
  const script = readCmdline(front).at(-1 - words) ?? "";
  const path = realpathSync(isAbsolute(script) ? script : join(`/proc/${front}/cwd`, script));
  return join(dirname(path), "../dist/criu.cjs") === realpathSync(process.argv[1] ?? "");
}

function whatDiffers(front: number): string | undefined {
  const [theirs, ours] = [readStatus(front), readStatus(process.pid)];
  const different = ALIKE.find((field) => !isSame(theirs[field], ours[field]));
  if (different !== undefined) return `it has another ${different}`;
  if (theirs.seccomp !== 0 || theirs.tracerPid !== 0) return "it is filtered or traced";
  if (theirs.threads !== 1) return "it has threads";
  const namespaces = readNamespaces(process.pid);
  for (const [kind, inode] of Object.entries(readNamespaces(front)))
    if (namespaces[kind as keyof typeof namespaces] !== inode)
      return `it is in another ${kind} namespace`;
  if (readlinkSync(`/proc/${front}/root`) !== "/" || !isSameRoot(front))
    return "it has another root";
  if (label(front) !== label(process.pid)) return "it has another security label";
  return undefined;
}

/** What has to be the same in the command and in us. */
const ALIKE = ["uid", "gid", "groups", "capEff", "capPrm", "capBnd", "noNewPrivs"] as const;

function isSame(a: TaskStatus[(typeof ALIKE)[number]], b: typeof a): boolean {
  return typeof a === "object" ? JSON.stringify(a) === JSON.stringify(b) : a === b;
}

function isSameRoot(front: number): boolean {
  const [theirs, ours] = [statSync(`/proc/${front}/root/`), statSync("/")];
  return theirs.dev === ours.dev && theirs.ino === ours.ino;
}

function label(pid: number): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/attr/current`, "latin1");
  } catch {
    return undefined; // no security module
  }
}

/** Takes the place of a command. */
export function takePlace(request: Request): Place {
  const { front, words } = request;
  const cmdline = readCmdline(front);
  const own = { env: { ...process.env }, argv: process.argv, umask: process.umask() };
  const args = cmdline.slice(cmdline.length - words);
  replaceEnvironment(environmentOf(front));
  process.argv = [...own.argv.slice(0, 2), ...args];
  process.umask(readStatus(front).umask ?? own.umask);
  process.chdir(`/proc/${front}/cwd`);
  takeDescriptors(request);
  standInFor(front);
  restartLog();
  return {
    args,
    giveBack() {
      restartLog();
      standInFor(undefined);
      emptyDescriptors();
      process.chdir("/");
      process.umask(own.umask);
      process.argv = own.argv;
      replaceEnvironment(own.env);
    },
  };
}

/** As at its start: bin/criu changes nothing but what Node itself would look at. */
function environmentOf(pid: number): NodeJS.ProcessEnv {
  const lines = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
  return Object.fromEntries(
    lines.flatMap((line) => {
      const at = line.indexOf("=");
      const name = line.slice(0, at);
      return at <= 0 || name.startsWith("NODE_") ? [] : [[name, line.slice(at + 1)]];
    }),
  );
}

function replaceEnvironment(environment: NodeJS.ProcessEnv): void {
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, environment);
}

/** What Node would have inherited, at the same numbers, and as Node has it: close-on-exec. The others stay occupied. */
function takeDescriptors({ front, input, output, answer, request }: Request): void {
  const protocol = [input, output, answer, request];
  const moved = new Map([
    [0, input],
    [1, output],
  ]);
  const inherited = readFdNumbers(front).filter(
    (fd) =>
      fd < FIRST_OWN_FD &&
      !protocol.includes(fd) &&
      (readFdInfo({ pid: front, fd }).flags & O_CLOEXEC) === 0,
  );
  const pidfd = syscall("pidfd_open", front, 0);
  try {
    for (const fd of inherited) {
      const copy = syscall("pidfd_getfd", pidfd, moved.get(fd) ?? fd, 0);
      syscall("dup3", copy, fd, O_CLOEXEC);
      closeSync(copy);
    }
  } finally {
    closeSync(pidfd);
  }
}

/** Holds the numbers that a command's descriptors will have. */
function emptyDescriptors(): void {
  const nothing = openSync("/dev/null", "r+");
  for (let fd = 0; fd < FIRST_OWN_FD; fd++)
    if (fd !== nothing) syscall("dup3", nothing, fd, O_CLOEXEC);
  if (nothing >= FIRST_OWN_FD) closeSync(nothing);
}
