BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'shuiwang','v1_readings_episodes_outbox','2026-01-01 00:00:00.000000+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'shuiwang','v2_set_aside_by_epoch','2026-01-01 00:00:00.000000+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'shuiwang','v3_memory','2026-01-01 00:00:00.000000+00:00');
CREATE TABLE absence (id text primary key, ended_ms integer, body text not null) strict, without rowid;
INSERT INTO "absence" VALUES('01M3250V010000000000000001',NULL,'{"id":"01M3250V010000000000000001","meter":"m-001","start_ms":1790000000000,"until_ms":1790864000000,"declared_by":"technician","declared_ms":1790000000001}');
CREATE TABLE alert (
    seq integer primary key,
    episode text not null references episode (id),
    body text not null
) strict;
INSERT INTO "alert" VALUES(2,'01M3250V010000000000000001','{"id":"01M3250V010000000000000001","meter":"m-001","kind":"low_usage","state":"cleared","level":"yellow","since":"2026-09-21T14:13:20.001Z","at":"2026-09-21T14:13:20.001Z","historical":false,"evidence":{}}');
INSERT INTO "alert" VALUES(3,'01M3250V020000000000000002','{"id":"01M3250V020000000000000002","meter":"m-001","kind":"low_usage","state":"open","level":"yellow","since":"2026-09-21T14:13:20.002Z","at":"2026-09-21T14:13:20.002Z","historical":false,"evidence":{"low":true}}');
CREATE TABLE boot (id integer primary key, boot_id text not null unique) strict;
INSERT INTO "boot" VALUES(1,'boot-1');
CREATE TABLE claim (body blob) strict;
CREATE TABLE command (number integer primary key, id text not null unique, wall_ms integer not null,
body blob not null, reply text not null) strict;
INSERT INTO "command" VALUES(1,'01M3250V010000000000000001',1790000000000,X'7B7D','{"schema":"shuiwang/reply/1","id":"01M3250V010000000000000001","at":"2026-09-21T14:13:20.000Z","done":true,"text":{"zh":"好","en":"done"}}');
CREATE TABLE episode (
    id text primary key,
    meter text,
    kind text not null,
    is_open integer not null check (is_open in (0, 1)),
    body text not null
) strict, without rowid;
INSERT INTO "episode" VALUES('01M3250V010000000000000001','m-001','low_usage',0,'{"id":"01M3250V010000000000000001","meter":"m-001","kind":"low_usage","state":"cleared","level":"yellow","since":"2026-09-21T14:13:20.001Z","at":"2026-09-21T14:13:20.001Z","historical":false,"evidence":{}}');
INSERT INTO "episode" VALUES('01M3250V020000000000000002','m-001','low_usage',1,'{"id":"01M3250V020000000000000002","meter":"m-001","kind":"low_usage","state":"open","level":"yellow","since":"2026-09-21T14:13:20.002Z","at":"2026-09-21T14:13:20.002Z","historical":false,"evidence":{"low":true}}');
CREATE TABLE hourly (hour integer check (hour >= 0), meter text, volume_ml integer not null check (volume_ml >= 0),
primary key (hour, meter)) strict, without rowid;
INSERT INTO "hourly" VALUES(497224,'m-001',20000);
CREATE TABLE learned (meter text primary key, boot_id text not null, boottime_ms integer not null,
position_ms integer not null, state blob not null, crc integer not null) strict;
INSERT INTO "learned" VALUES('m-001','boot-1',3600000,3600000,X'6C6561726E6564',685984550);
CREATE TABLE meta (key text primary key, value text not null) strict, without rowid;
INSERT INTO "meta" VALUES('epoch','01M3250V000000000000000000');
CREATE TABLE reading (
    id integer primary key,
    meter text not null check (meter glob '[a-z0-9]*' and meter not glob '*[^-a-z0-9]*'),
    wall_ms integer not null check (wall_ms between 0 and 253402300799999),
    trust text not null check (trust in ('synced', 'unsynced')),
    uncertainty_ms integer check (uncertainty_ms >= 0),
    boot integer not null references boot (id),
    boottime_ms integer not null,
    volume_ml integer check (volume_ml between 0 and 9007199254740991),
    quality text not null check (quality in ('ok', 'suspect', 'missing')),
    reason text,
    flags text,
    check ((volume_ml is null) = (quality = 'missing') and (reason is not null) = (quality = 'missing'))
) strict;
INSERT INTO "reading" VALUES(2,'m-001',1790003600000,'synced',5,1,3600000,12345,'suspect',NULL,'leak');
INSERT INTO "reading" VALUES(3,'m-002',1790003600000,'synced',5,1,3600000,NULL,'missing','no_response',NULL);
INSERT INTO "reading" VALUES(4,'m-001',1790007200000,'synced',5,1,7200000,20000,'ok',NULL,NULL);
CREATE TABLE set_aside (
    id integer primary key,
    epoch text not null,
    stream text not null,
    seq integer not null,
    body text not null,
    reason text not null,
    wall_ms integer not null,
    unique (epoch, stream, seq)
) strict;
INSERT INTO "set_aside" VALUES(1,'01M3250V000000000000000000','alert',1,'{"stream": "alert", "epoch": "01M3250V000000000000000000", "seq": 1, "readings": null, "dropped": null, "alert": {"id": "01M3250V010000000000000001", "meter": "m-001", "kind": "low_usage", "state": "open", "level": "yellow", "since": "2026-09-21T14:13:20.001Z", "at": "2026-09-21T14:13:20.001Z", "historical": false, "evidence": {}}}','unknown kind',1790000000000);
CREATE TABLE stream (
    name text primary key check (name in ('telemetry', 'alert')),
    last_seq integer not null default 0,
    acked_seq integer not null default 0 check (acked_seq between 0 and last_seq),
    acked_wall_ms integer
) strict, without rowid;
INSERT INTO "stream" VALUES('alert',3,1,1790000000000);
INSERT INTO "stream" VALUES('telemetry',2,0,NULL);
CREATE TABLE telemetry (
    seq integer primary key,
    first_id integer not null,
    last_id integer not null check (last_id >= first_id),
    dropped text
) strict;
INSERT INTO "telemetry" VALUES(1,1,1,'{"readings":1,"from":"2026-09-21T14:13:20.000Z","to":"2026-09-21T14:13:20.000Z"}');
INSERT INTO "telemetry" VALUES(2,2,3,NULL);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX alert_episode on alert (episode, seq);
COMMIT;
