// CRIU's options as a table, read the way getopt_long reads them: options stand anywhere, long names may be
// shortened, `-v4` and `--name=value` carry their argument, `--` ends the options. The result is plain data;
// which options the engine can honour is said in support.ts.

import { RepriseError } from "../errors.ts";

/** Options that are on or off. Those that CRIU lets you take back have a `--no-` form. */
export const NEGATABLE_FLAGS = [
  "restore-detached",
  "restore-sibling",
  "tcp-established",
  "log-pid",
  "evasive-devices",
  "link-remap",
  "shell-job",
  "file-locks",
  "page-server",
  "track-mem",
  "auto-dedup",
  "force-irmap",
  "extra",
  "experimental",
  "skip-in-flight",
  "deprecated",
  "display-stats",
  "weak-sysctls",
  "tcp-close",
  "stream",
  "tls",
  "skip-file-rwx-check",
  "mntns-compat-mode",
  "unprivileged",
  "ghost-fiemap",
  "allow-uprobes",
  // Not CRIU's, which knows it by RPC alone.
  "orphan-pts-master",
] as const;

const PLAIN_FLAGS = [
  "leave-stopped",
  "leave-running",
  "help",
  "version",
  "exec-cmd",
  "enable-external-sharing",
  "enable-external-masters",
  "lazy-pages",
  "all",
  "no-default-config",
  "tls-no-cn-verify",
  "ms",
] as const;

/** Not CRIU's: written out in full only, so that every beginning of a name means what it means to CRIU. */
const OWN_FLAGS = ["strict", "explain"] as const;

/** Options with a value, of which the last one counts. */
export const VALUE_OPTIONS = [
  "tree",
  "images-dir",
  "work-dir",
  "log-file",
  "root",
  "pidfile",
  "address",
  "port",
  "prev-images-dir",
  "libdir",
  "feature",
  "freeze-cgroup",
  "ghost-limit",
  "lsm-profile",
  "timeout",
  "empty-ns",
  "cgroup-props",
  "cgroup-props-file",
  "status-fd",
  "ps-socket",
  "config",
  "tls-cacert",
  "tls-cacrl",
  "tls-cert",
  "tls-key",
  "cgroup-yard",
  "pre-dump-mode",
  "file-validation",
  "lsm-mount-context",
  "network-lock",
] as const;

/** Options with a value that may be left out. */
export const OPTIONAL_VALUES = ["ext-unix-sk", "cpu-cap", "manage-cgroups"] as const;

/** Options that may be given several times; every value counts. */
export const LIST_OPTIONS = [
  "join-ns",
  "close",
  "veth-pair",
  "action-script",
  "ext-mount-map",
  "cgroup-root",
  "inherit-fd",
  "skip-mnt",
  "enable-fs",
  "irmap-scan-path",
  "external",
  "cgroup-dump-controller",
] as const;

export type FlagName =
  | (typeof NEGATABLE_FLAGS)[number]
  | (typeof PLAIN_FLAGS)[number]
  | (typeof OWN_FLAGS)[number];
export type ValueName = (typeof VALUE_OPTIONS)[number] | (typeof OPTIONAL_VALUES)[number];
export type ListName = (typeof LIST_OPTIONS)[number];
export type OptionName = FlagName | ValueName | ListName;

/** What a command line and configuration files ask for. */
export interface CriuOptions {
  /** Flags that are on. */
  readonly flags: ReadonlySet<FlagName>;
  /** Values that were given; an optional value that was left out is "". */
  readonly values: Readonly<Partial<Record<ValueName, string>>>;
  readonly lists: Readonly<Partial<Record<ListName, readonly string[]>>>;
  /** Log level: 1 errors, 2 warnings, 3 information, 4 debugging. */
  readonly verbosity: number;
  /** What happens to the tasks after a dump: the last of -R and -s counts. */
  readonly leave: "killed" | "running" | "stopped";
  /** Words that are no options: the action first. */
  readonly words: readonly string[];
}

type Argument = "none" | "required" | "optional";

interface LongOption {
  readonly argument: Argument;
  readonly apply: (draft: Draft, value: string | undefined) => void;
}

interface Draft {
  flags: Set<FlagName>;
  values: Partial<Record<ValueName, string>>;
  lists: Partial<Record<ListName, string[]>>;
  verbosity: number;
  leave: CriuOptions["leave"];
  words: string[];
}

const DEFAULT_VERBOSITY = 2;

const LONG_OPTIONS: ReadonlyMap<string, LongOption> = longOptions();

const SHORT_OPTIONS: Readonly<Record<string, string>> = {
  d: "restore-detached",
  S: "restore-sibling",
  s: "leave-stopped",
  R: "leave-running",
  t: "tree",
  h: "help",
  D: "images-dir",
  o: "log-file",
  v: "verbosity",
  x: "ext-unix-sk",
  V: "version",
  r: "root",
  j: "shell-job",
  J: "join-ns",
  l: "file-locks",
  W: "work-dir",
  L: "libdir",
  M: "ext-mount-map",
};

/**
 * Reads lists of arguments one after the other; later ones win. Configuration files come as lists of long
 * options, the command line last.
 *
 * @throws RepriseError BAD_ARGUMENT for an unknown option or a wrong value.
 */
export function parseOptions(argumentLists: readonly (readonly string[])[]): CriuOptions {
  const draft: Draft = {
    flags: new Set(["ghost-fiemap"]),
    values: {},
    lists: {},
    verbosity: DEFAULT_VERBOSITY,
    leave: "killed",
    words: [],
  };
  for (const args of argumentLists) readList(draft, args);
  checkValues(draft);
  return draft;
}

/**
 * Reads a number in decimal digits.
 *
 * @throws RepriseError BAD_ARGUMENT when it is none or below `min`.
 */
export function numberValue(
  options: CriuOptions,
  name: ValueName,
  min: number,
): number | undefined {
  const text = options.values[name];
  return text === undefined ? undefined : parseNumber(name, text, min);
}

/** Reads `--ghost-limit`: bytes, or with K, M or G behind the number. */
export function ghostLimit(options: CriuOptions): number | undefined {
  const text = options.values["ghost-limit"];
  if (text === undefined) return undefined;
  const match = /^(\d+)([KMG]?)$/.exec(text);
  if (match === null)
    throw badArgument("ghost-limit", text, "a number of bytes, or one with K, M or G");
  return Number(match[1]) * 1024 ** ["", "K", "M", "G"].indexOf(match[2] ?? "");
}

/** Reads `--ext-unix-sk[=INODE,...]` and `--external unix[INODE]`: all named ones, these, or none. */
export function externalUnixSockets(options: CriuOptions): boolean | readonly number[] {
  const text = options.values["ext-unix-sk"];
  const named = (options.lists.external ?? []).flatMap((one) => {
    const inode = /^unix\[(\d+)\]$/.exec(one)?.[1];
    return inode === undefined ? [] : [Number(inode)];
  });
  const listed = (text ?? "")
    .split(",")
    .filter((word) => word !== "")
    .map((word) => parseNumber("ext-unix-sk", word, 1));
  if (named.length + listed.length > 0) return [...listed, ...named];
  return text !== undefined;
}

/** `--external` and what its older forms stand for, each as `--external` has it. */
export function externalResources({ lists }: CriuOptions): string[] {
  const mounts = (lists["ext-mount-map"] ?? []).map((one) => {
    if (one === "auto") return "mnt[]";
    const colon = one.indexOf(":");
    if (colon < 0) throw badArgument("ext-mount-map", one, "KEY:VALUE, or auto");
    return `mnt[${one.slice(0, colon)}]:${one.slice(colon + 1)}`;
  });
  const veths = (lists["veth-pair"] ?? []).map((one) => {
    const equals = one.indexOf("=");
    if (equals < 0) throw badArgument("veth-pair", one, "INSIDE=OUTSIDE");
    return `veth[${one.slice(0, equals)}]:${one.slice(equals + 1)}`;
  });
  return [...(lists.external ?? []), ...mounts, ...veths];
}

function longOptions(): Map<string, LongOption> {
  const table = new Map<string, LongOption>();
  for (const name of [...NEGATABLE_FLAGS, ...PLAIN_FLAGS, ...OWN_FLAGS])
    table.set(name, flag(name, true));
  for (const name of NEGATABLE_FLAGS) table.set(`no-${name}`, flag(name, false));
  table.set("daemon", flag("restore-detached", true));
  table.set("no-daemon", flag("restore-detached", false));
  table.set("leave-stopped", leave("stopped"));
  table.set("leave-running", leave("running"));
  for (const name of VALUE_OPTIONS) table.set(name, value(name, "required"));
  for (const name of OPTIONAL_VALUES) table.set(name, value(name, "optional"));
  for (const name of LIST_OPTIONS) table.set(name, list(name));
  table.set("verbosity", { argument: "optional", apply: setVerbosity });
  return table;
}

function flag(name: FlagName, on: boolean): LongOption {
  const apply = ({ flags }: Draft): void => void (on ? flags.add(name) : flags.delete(name));
  return { argument: "none", apply };
}

function leave(state: CriuOptions["leave"]): LongOption {
  return { argument: "none", apply: (draft) => void (draft.leave = state) };
}

function value(name: ValueName, argument: Argument): LongOption {
  return { argument, apply: (draft, text = "") => void (draft.values[name] = text) };
}

function list(name: ListName): LongOption {
  const apply = ({ lists }: Draft, text = ""): void => void (lists[name] ??= []).push(text);
  return { argument: "required", apply };
}

/** `-v` and `--verbosity` add one; `-vvv` adds one each; with a number the level is set, as atoi reads it. */
function setVerbosity(draft: Draft, text: string | undefined): void {
  if (text === undefined) draft.verbosity += 1;
  else if (text.startsWith("v")) draft.verbosity += text.length + 1;
  else draft.verbosity = Number(/^\s*[+-]?\d+/.exec(text)?.[0] ?? 0);
}

function readList(draft: Draft, args: readonly string[]): void {
  let at = 0;
  const next = (): string | undefined => args[at++];
  for (let word = next(); word !== undefined; word = next()) {
    if (word === "--") {
      draft.words.push(...args.slice(at));
      return;
    }
    if (word.startsWith("--")) readLong(draft, word.slice(2), next);
    else if (word.startsWith("-") && word !== "-") readShort(draft, word.slice(1), next);
    else draft.words.push(word);
  }
}

function readLong(draft: Draft, text: string, next: () => string | undefined): void {
  const equals = text.indexOf("=");
  const given = equals < 0 ? text : text.slice(0, equals);
  const name = fullName(given);
  const option = LONG_OPTIONS.get(name) as LongOption;
  let argument = equals < 0 ? undefined : text.slice(equals + 1);
  if (argument !== undefined && option.argument === "none") {
    throw usageError(`option '--${name}' does not allow an argument`);
  }
  if (option.argument === "required") argument ??= next();
  if (argument === undefined && option.argument === "required") {
    throw usageError(`option '--${name}' requires an argument`);
  }
  option.apply(draft, argument);
}

/** getopt_long takes any beginning of a name that fits one option only. */
function fullName(given: string): string {
  if (LONG_OPTIONS.has(given)) return given;
  const own: readonly string[] = OWN_FLAGS;
  const candidates = [...LONG_OPTIONS.keys()].filter(
    (name) => name.startsWith(given) && !own.includes(name),
  );
  const [first] = candidates;
  if (first === undefined) throw usageError(`unrecognized option '--${given}'`);
  if (candidates.length > 1) {
    const names = candidates.map((name) => `--${name}`).join(", ");
    throw usageError(`option '--${given}' is ambiguous: ${names}`);
  }
  return first;
}

function readShort(draft: Draft, cluster: string, next: () => string | undefined): void {
  for (let at = 0; at < cluster.length; at++) {
    const letter = cluster.charAt(at);
    const option = LONG_OPTIONS.get(SHORT_OPTIONS[letter] ?? "");
    if (option === undefined) throw usageError(`invalid option -- '${letter}'`);
    if (option.argument === "none") {
      option.apply(draft, undefined);
      continue;
    }
    let argument = at + 1 < cluster.length ? cluster.slice(at + 1) : undefined;
    if (option.argument === "required") argument ??= next();
    if (argument === undefined && option.argument === "required") {
      throw usageError(`option requires an argument -- '${letter}'`);
    }
    option.apply(draft, argument);
    return;
  }
}

/** Values that are wrong whatever the action is. */
function checkValues(options: CriuOptions): void {
  numberValue(options, "tree", 1);
  numberValue(options, "timeout", 0);
  numberValue(options, "status-fd", 0);
  numberValue(options, "port", 0);
  numberValue(options, "ps-socket", 0);
  for (const fd of options.lists.close ?? []) parseNumber("close", fd, 0);
  ghostLimit(options);
  externalUnixSockets(options);
  oneOf(options, "file-validation", ["filesize", "buildid"]);
  oneOf(options, "pre-dump-mode", ["splice", "read"]);
  oneOf(options, "network-lock", ["iptables", "nftables", "skip", "none"]);
  oneOf(options, "manage-cgroups", ["", "ignore", "none", "props", "soft", "full", "strict"]);
  oneOf(options, "empty-ns", ["net"]);
  const profile = options.values["lsm-profile"];
  if (profile !== undefined && !/^(none:.*|(apparmor|selinux):.+)$/s.test(profile))
    throw badArgument("lsm-profile", profile, "apparmor:PROFILE, selinux:CONTEXT, or none:");
}

function parseNumber(name: OptionName, text: string, min: number): number {
  const number = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(number) || number < min) {
    throw badArgument(name, text, `a whole number, ${min} or more`);
  }
  return number;
}

function oneOf(options: CriuOptions, name: ValueName, allowed: readonly string[]): void {
  const text = options.values[name];
  if (text === undefined || allowed.includes(text)) return;
  throw badArgument(name, text, `one of ${allowed.filter((word) => word !== "").join(", ")}`);
}

function badArgument(name: OptionName, text: string, wanted: string): RepriseError {
  return new RepriseError("BAD_ARGUMENT", `invalid argument for --${name}: ${text}`, {
    hint: `It must be ${wanted}.`,
  });
}

function usageError(message: string): RepriseError {
  return new RepriseError("BAD_ARGUMENT", message, { hint: "criu --help lists the options." });
}
