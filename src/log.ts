// Leveled log lines. The engine logs through one sink that the front end sets: the criu front end
// writes CRIU's `(SS.UUUUUU) text` lines to its log file, the reprise front end stays silent unless asked.

export const LogLevel = { ERROR: 1, WARN: 2, INFO: 3, DEBUG: 4 } as const;
export type LogLevelValue = (typeof LogLevel)[keyof typeof LogLevel];
export type LogSink = (level: LogLevelValue, text: string) => void;

let sink: LogSink | undefined;
let threshold: LogLevelValue = LogLevel.WARN;

/** Sends log lines up to `level` to `to`; without a sink nothing is logged. */
export function setLogSink(to: LogSink | undefined, level: LogLevelValue = LogLevel.WARN): void {
  sink = to;
  threshold = level;
}

/** Runs a step that logs nothing: what it does is done again, and told then. */
export function withoutLog<T>(step: () => T): T {
  const before = sink;
  sink = undefined;
  try {
    return step();
  } finally {
    sink = before;
  }
}

function emit(level: LogLevelValue, text: string): void {
  if (sink !== undefined && level <= threshold) sink(level, text);
}

/** Awaits an action of which nothing is logged, and no loss refused. */
export async function quietly<T>(action: () => Promise<T>): Promise<T> {
  const [usual, refusal] = [sink, refuse];
  sink = refuse = undefined;
  try {
    return await action();
  } finally {
    [sink, refuse] = [usual, refusal];
  }
}

let refuse: ((text: string) => never) | undefined;

/** What becomes of a loss that is told from now on: a warning, or an error that `by` throws (--strict). */
export function refuseLosses(by: ((text: string) => never) | undefined): void {
  refuse = by;
}

/** Log lines at the four levels; text is one line without a newline. */
export const log = {
  error: (text: string): void => emit(LogLevel.ERROR, text),
  warn: (text: string): void => emit(LogLevel.WARN, text),
  /** Something of a task that no image will hold: "what: why". A dump with --strict ends here. */
  loss: (text: string): void => {
    refuse?.(text);
    emit(LogLevel.WARN, text);
  },
  info: (text: string): void => emit(LogLevel.INFO, text),
  debug: (text: string): void => emit(LogLevel.DEBUG, text),
  /** Whether debug lines go anywhere: guards expensive formatting. */
  debugEnabled: (): boolean => sink !== undefined && threshold >= LogLevel.DEBUG,
};
