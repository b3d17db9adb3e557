{{/*
The release's own name for everything: "mint" for the release mint, "x-mint" for a release x. Kubernetes wants names of
Services to begin with a letter and to have no dots: they are "mint-1" for a release 1, "v1-mint" for v1.mint.
*/}}
{{- define "mint.fullname" -}}
{{- $release := .Release.Name | replace "." "-" }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if regexMatch "^[0-9]" $release }}{{ printf "mint-%s" ($release | trunc 35 | trimSuffix "-") }}
{{- else if contains "mint" $release }}{{ $release | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-mint" ($release | trunc 35 | trimSuffix "-") }}{{ end }}
{{- end }}

{{/* Labels that never change, by which pods are found. Takes (list $ component). */}}
{{- define "mint.selector" -}}
app.kubernetes.io/name: mint
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* By which engines' NetworkPolicies know the gateways, as key=value,... */}}
{{- define "mint.gateway.labels" -}}
{{- $pairs := list }}
{{- range $key, $value := include "mint.selector" (list . "gateway") | fromYaml }}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) }}
{{- end }}
{{- join "," $pairs }}
{{- end }}

{{/* All labels. Takes (list $ component). */}}
{{- define "mint.labels" -}}
{{ include "mint.selector" . }}
app.kubernetes.io/part-of: mint
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{/* The labels of a part's pods: what users add replaces none of ours. Takes (list $ component component-values). */}}
{{- define "mint.podLabels" -}}
{{- merge (include "mint.labels" (list (index . 0) (index . 1)) | fromYaml) ((index . 2).podLabels | default dict) | toYaml }}
{{- end }}

{{/* repository:tag, or repository@digest. Takes (list $ part). Nobody's registry is a default: its owner would run as us. */}}
{{- define "mint.image" -}}
{{- $part := index . 1 }}{{ $image := get (index . 0).Values.images $part }}
{{- $tag := $image.tag | default (index . 0).Chart.AppVersion -}}
{{ required (include "mint.image.lacking" .) $image.repository }}{{ if hasPrefix "sha256:" $tag }}@{{ else }}:{{ end }}{{ $tag }}
{{- end }}

{{/* What to do where an image's repository is not set. Takes (list $ part). */}}
{{- define "mint.image.lacking" -}}
{{- $make := printf "make images REPOSITORY=registry.example/mint TAG=%s" (index . 0).Chart.AppVersion -}}
images.{{ index . 1 }}.repository is not set: build MinT's two images with "{{ $make }}", push them to your registry, and set images.operator.repository and images.gateway.repository to registry.example/mint/control, and images.engine.repository to registry.example/mint/engine (in an upgrade, use --reset-then-reuse-values; otherwise Helm forgets all previous values)
{{- end }}

{{/* What every pod of ours has in common. Takes (list $ component-values). */}}
{{- define "mint.pod" -}}
{{- $root := index . 0 }}{{ $own := index . 1 -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  # A claim of a million files has each of them changed at every start otherwise.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $root.Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every container of ours has in common. */}}
{{- define "mint.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "mint.redis.secret" -}}
{{- if .Values.redis.external.url }}{{ .Values.redis.external.existingSecret }}
{{- else }}{{ .Values.redis.existingSecret | default (printf "%s-redis" (include "mint.fullname" .)) }}{{ end }}
{{- end }}

{{/*
The variables of a Redis user from a Secret, whose key "username" only an external Redis has, and may lack: Redis's
default user has no need of it. Takes (list $ prefix secret).
*/}}
{{- define "mint.redis.user" -}}
{{- if (index . 0).Values.redis.external.url }}
- name: {{ index . 1 }}_USERNAME
  valueFrom:
    secretKeyRef:
      name: {{ index . 2 | quote }}
      key: username
      optional: true
{{- end }}
- name: {{ index . 1 }}_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ index . 2 | quote }}
      key: password
{{- end }}

{{/* The environment by which a part of MinT reaches the placement map. Takes (list $ secret). */}}
{{- define "mint.redis.env" -}}
{{- $root := index . 0 -}}
- name: MINT_REDIS_URL
  value: {{ $root.Values.redis.external.url | default (printf "redis://%s-redis.%s.svc:6379/0" (include "mint.fullname" $root) $root.Release.Namespace) }}
{{- with index . 1 }}
{{- include "mint.redis.user" (list $root "MINT_REDIS" .) | nindent 0 }}
{{- end }}
{{- if include "mint.redis.ca" $root }}
- name: MINT_REDIS_CA_FILE
  value: /etc/mint/redis/ca.crt
{{- end }}
{{- end }}

{{/* By which the libraries of object stores, hubs and web servers find the CAs of caBundle. */}}
{{- define "mint.caBundle.env" -}}
{{- if .Values.caBundle.configMap }}
{{- range list "SSL_CERT_FILE" "AWS_CA_BUNDLE" "REQUESTS_CA_BUNDLE" }}
- name: {{ . }}
  value: /etc/mint/ca/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "mint.caBundle.mounts" -}}
{{- if .Values.caBundle.configMap }}
- name: ca-bundle
  mountPath: /etc/mint/ca
  readOnly: true
{{- end }}
{{- end }}

{{- define "mint.caBundle.volumes" -}}
{{- with .Values.caBundle.configMap }}
- name: ca-bundle
  configMap:
    name: {{ . | quote }}
    items:
      - key: {{ $.Values.caBundle.key | quote }}
        path: ca.crt
{{- end }}
{{- end }}

{{- define "mint.redis.ca" -}}
{{- if .Values.redis.external.url }}{{ .Values.redis.external.caSecret }}{{ end }}
{{- end }}

{{- define "mint.redis.mounts" -}}
{{- if include "mint.redis.ca" . }}
- name: redis-ca
  mountPath: /etc/mint/redis
  readOnly: true
{{- end }}
{{- end }}

{{- define "mint.redis.volumes" -}}
{{- with include "mint.redis.ca" . }}
- name: redis-ca
  secret:
    secretName: {{ . | quote }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- end }}
