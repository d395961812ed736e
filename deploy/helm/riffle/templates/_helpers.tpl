{{- define "riffle.fullname" -}}
{{- if contains "riffle" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-riffle" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels by which pods are selected. Takes (list root component). */}}
{{- define "riffle.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: riffle
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of each object. Takes (list root component). */}}
{{- define "riffle.labels" -}}
{{- $root := index . 0 -}}
{{ include "riffle.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* Name and labels. Takes (list root component). */}}
{{- define "riffle.metadata" -}}
name: {{ include "riffle.fullname" (index . 0) }}-{{ index . 1 }}
labels: {{- include "riffle.labels" . | nindent 2 }}
{{- end }}

{{/* Takes (list root image). */}}
{{- define "riffle.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- with $root.Values.image.registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Labels and annotations of a pod: it is replaced when settings change. Takes (list root component). */}}
{{- define "riffle.podMetadata" -}}
{{- $root := index . 0 -}}
labels: {{- include "riffle.labels" . | nindent 2 }}
annotations:
  checksum/settings: {{ include "riffle.settings" $root | sha256sum }}
  {{- with (get $root.Values (index . 1)).podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What all pods have in common. Takes (list root component). */}}
{{- define "riffle.pod" -}}
{{- $root := index . 0 }}{{ $values := get $root.Values (index . 1) -}}
serviceAccountName: {{ if $root.Values.serviceAccounts.create }}{{ include "riffle.fullname" $root }}-{{ index . 1 }}{{ else }}default{{ end }}
automountServiceAccountToken: false
# a Service's name would become variables that are taken for settings, such as RIFFLE_WEB_PORT
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Pods of a component are spread over zones, then over nodes. Takes (list root component). */}}
{{- define "riffle.spread" -}}
{{- $values := get (index . 0).Values (index . 1) -}}
topologySpreadConstraints:
  {{- range $key, $unsatisfiable := dict "topology.kubernetes.io/zone" $values.zoneSpread "kubernetes.io/hostname" "ScheduleAnyway" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $unsatisfiable }}
    labelSelector:
      matchLabels: {{- include "riffle.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{/* What all containers have in common. Takes root. */}}
{{- define "riffle.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
envFrom:
  - configMapRef: {name: {{ include "riffle.fullname" . }}}
  {{- with .Values.secrets.environment }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}

{{- define "riffle.mounts" -}}
- {name: state, mountPath: /var/lib/riffle}
- {name: tmp, mountPath: /tmp}
{{- if .Values.secrets.files }}
- {name: secrets, mountPath: /etc/riffle/secrets, readOnly: true}
{{- end }}
{{- end }}

{{/* Volumes but the state's. */}}
{{- define "riffle.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
{{- with .Values.secrets.files }}
- name: secrets
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* Probes of a process with a status page. healthz: 503 if it is stuck, so that it is restarted; readyz: 503 while it should get no requests.
     They need no token. Takes (list port startupSeconds root). */}}
{{- define "riffle.probes" -}}
{{- $port := index . 0 }}{{ $scheme := ternary "HTTPS" "HTTP" (ne (index . 2).Values.http.certificate "") -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ $port }}, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ div (add (index . 1) 4) 5 }}
livenessProbe:
  httpGet: {path: /healthz, port: {{ $port }}, scheme: {{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ $port }}, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{/* All settings: those that follow from other values, and those that are given, which win. */}}
{{- define "riffle.settings" -}}
{{- $derived := dict "RIFFLE_HOME" "/var/lib/riffle" "RIFFLE_CACHE" "/var/lib/riffle/cache" "RIFFLE_WEB_HOST" "0.0.0.0" -}}
{{- $_ := set $derived "RIFFLE_DRAIN_S" (toString .Values.worker.drainSeconds) -}}
{{- if .Values.ranking.enabled }}{{ $_ := set $derived "RIFFLE_RANKING" "remote" }}{{ end -}}
{{- $files := dict "tokens" "TOKENS_FILE" "token" "TOKEN_FILE" "certificate" "CERT_FILE" "key" "KEY_FILE" "authorities" "CA_FILE" -}}
{{- range $value, $setting := $files -}}
{{- with get $.Values.http $value }}{{ $_ := set $derived (printf "RIFFLE_HTTP_%s" $setting) (printf "/etc/riffle/secrets/%s" .) }}{{ end -}}
{{- end -}}
{{- with .Values.http.serverName }}{{ $_ := set $derived "RIFFLE_HTTP_SERVER_NAME" . }}{{ end -}}
{{- if not .Values.http.tokens }}{{ $_ := set $derived "RIFFLE_HTTP_WITHOUT_TOKENS" "yes" }}{{ end -}}
{{- toYaml (merge (dict) .Values.settings $derived) -}}
{{- end }}

{{- define "riffle.partitions" -}}{{ .Values.settings.RIFFLE_PARTITIONS | default "4" | int }}{{- end }}
{{- define "riffle.group" -}}{{ .Values.settings.RIFFLE_APP_ID | default "riffle" }}{{- end }}
{{- define "riffle.prefix" -}}{{ .Values.settings.RIFFLE_TOPIC_PREFIX | default "riffle." }}{{- end }}
