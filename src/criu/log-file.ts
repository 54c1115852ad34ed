// The log as CRIU writes it, because runtimes show its last lines and look for "Error" in them:
// `(SS.UUUUUU) text`, with `Error (file:line): ` or `Warn  (file:line): ` before the text. To a terminal
// at the usual levels the time is left out.

import { closeSync, constants, openSync, writeSync } from "node:fs";
import { basename } from "node:path";
import { asRepriseError } from "../engine/system-error.ts";
import { type RepriseError } from "../errors.ts";
import { LogLevel, log, setLogSink, type LogLevelValue } from "../log.ts";
import { bundlePlacesOf, findBundlePlace } from "./bundle-places.ts";
import { frontPid, isStandIn } from "../sys/front.ts";
import { CRIU_VERSION, PACKAGE_VERSION } from "../version.ts";

/** Lines carry the time from this level up. */
const TIMES_FROM: number = LogLevel.INFO;

interface Target {
  readonly fd: number;
  readonly verbosity: number;
}

/** The number itself: making the stream `process.stderr` takes 2 ms. */
const STDERR = 2;

let target: Target = { fd: STDERR, verbosity: LogLevel.WARN };

/** A file that a runtime has made (and labelled) stays the same one; appending, several processes can write it. */
const LOG_FLAGS = constants.O_CREAT | constants.O_TRUNC | constants.O_APPEND | constants.O_WRONLY;

/** Sends the log to a file of its own (created, or emptied), or to standard error. */
export function openLog(options: {
  readonly file?: string | undefined;
  readonly verbosity: number;
}): void {
  const fd = options.file === undefined ? STDERR : openFile(options.file);
  target = { fd, verbosity: Math.min(options.verbosity, LogLevel.DEBUG) };
  setLogSink(target.verbosity < 1 ? undefined : write, target.verbosity as LogLevelValue);
}

function openFile(path: string): number {
  try {
    return openSync(path, LOG_FLAGS, 0o600);
  } catch (error) {
    throw asRepriseError(error, "open the log");
  }
}

/** Times in the log count from now on, not from the start of the process; a log file that was open is closed. */
export function restartLog(): void {
  if (target.fd !== STDERR) closeSync(target.fd);
  openLog({ verbosity: LogLevel.WARN });
  begun = performance.now();
}

let begun = 0;

/** Descriptor of the log. */
export function logFd(): number {
  return target.fd;
}

/** The lines that every log begins with: versions, and the system. */
export function logHeader(): void {
  log.info(`Version: ${CRIU_VERSION.major}.${CRIU_VERSION.minor} (gitid 0)`);
  if (target.verbosity >= LogLevel.INFO) {
    // Loaded for this alone, it takes half a millisecond.
    const { hostname, machine, release, version } = process.getBuiltinModule("node:os");
    log.info(`Running on ${hostname()} Linux ${release()} ${version()} ${machine()}`);
  }
  log.info(`Reprise ${PACKAGE_VERSION}, Node.js ${process.versions.node}`);
  if (isStandIn())
    log.info(`an engine that stood by (pid ${process.pid}) works for pid ${frontPid()}`);
}

/** Logs an error with the place where it was made, and its hint on a line of its own. */
export function logError(error: RepriseError): void {
  const place = origin(error.stack);
  write(LogLevel.ERROR, error.message, place);
  if (error.hint !== undefined) write(LogLevel.ERROR, error.hint, place);
  if (error.cause instanceof Error) log.info(`Caused by ${error.cause.message}`);
  log.debug(error.stack ?? "");
}

/** One line of the log; without `micros` it has no time, and `place` counts for errors and warnings. */
export function formatLine(line: {
  readonly level: LogLevelValue;
  readonly text: string;
  readonly micros: number | undefined;
  readonly place: string;
}): string {
  const { level, text, micros, place } = line;
  const time = micros === undefined ? "" : `(${seconds(micros)}) `;
  if (level > LogLevel.WARN) return `${time}${text}\n`;
  return `${time}${level === LogLevel.ERROR ? "Error" : "Warn "} (${place}): ${text}\n`;
}

/** Warnings that wait, with the stacks of where they were made. */
let held: { readonly text: string; readonly made: Error }[] | undefined;

/**
 * Warnings wait until `writeHeld`, or the first error: to find out where one was made takes V8 some milliseconds, for which tasks
 * would stand still. Not in a log that has times and tells everything, since it would lack the last lines of an engine that hangs.
 */
export function holdWarnings(): void {
  if (target.verbosity < TIMES_FROM) held ??= [];
}

/** Writes what was held, and holds nothing any more. */
export function writeHeld(): void {
  const lines = held ?? [];
  held = undefined;
  for (const { text, made } of lines) write(LogLevel.WARN, text, origin(made.stack));
}

function write(level: LogLevelValue, text: string, place?: string): void {
  if (level > target.verbosity) return;
  if (held !== undefined) {
    if (level === LogLevel.WARN) return void held.push({ text, made: here() });
    writeHeld();
  }
  const micros = target.verbosity < TIMES_FROM ? undefined : (performance.now() - begun) * 1000;
  const known = place ?? (level <= LogLevel.WARN ? origin(here().stack) : "");
  const line = formatLine({ level, text, micros, place: known });
  // A full disk or a closed pipe must not fail the operation that is being logged; why that failed is told where there is room.
  if (!wrote(target.fd, line) && level === LogLevel.ERROR) wrote(STDERR, line);
}

/** As many frames as lead out of the log. */
const FRAMES = 5;

/** An error made here, for its stack. V8 compiles each function in a stack once more to know its lines, so there are few. */
function here(): Error {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = FRAMES;
  const made = new Error("origin");
  Error.stackTraceLimit = stackTraceLimit;
  return made;
}

function wrote(fd: number, line: string): boolean {
  try {
    writeSync(fd, line);
    return true;
  } catch {
    return false;
  }
}

function seconds(micros: number): string {
  const whole = String(Math.floor(micros / 1e6)).padStart(2, "0");
  return `${whole}.${String(Math.floor(micros % 1e6)).padStart(6, "0")}`;
}

const OWN_FRAMES = /^(?:log|errors|criu\/log-file)\.ts:/;

/** `folder/file.ts:line` of the first frame of a stack that is not of the log itself. */
function origin(stack: string | undefined): string {
  for (const frame of (stack ?? "").split("\n")) {
    const match = /\(?((?:file:\/\/)?\/[^():]+):(\d+):(\d+)\)?$/.exec(frame);
    if (match === null) continue;
    const place = sourcePlace(match[1] ?? "", Number(match[2]), Number(match[3]));
    if (!OWN_FRAMES.test(place)) return place;
  }
  return "reprise:0";
}

function sourcePlace(file: string, line: number, column: number): string {
  const entry = file.endsWith(".cjs")
    ? findBundlePlace(bundlePlacesOf(file), line, column)
    : undefined;
  const source = entry?.source ?? file;
  const from = source.lastIndexOf("/src/");
  const short = from < 0 ? basename(source) : source.slice(from + "/src/".length);
  return `${short}:${entry?.line ?? line}`;
}
