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

function emit(level: LogLevelValue, text: string): void {
  if (sink !== undefined && level <= threshold) sink(level, text);
}

/** Log lines at the four levels; text is one line without a newline. */
export const log = {
  error: (text: string): void => emit(LogLevel.ERROR, text),
  warn: (text: string): void => emit(LogLevel.WARN, text),
  info: (text: string): void => emit(LogLevel.INFO, text),
  debug: (text: string): void => emit(LogLevel.DEBUG, text),
  /** Whether debug lines go anywhere: guards expensive formatting. */
  debugEnabled: (): boolean => sink !== undefined && threshold >= LogLevel.DEBUG,
};
